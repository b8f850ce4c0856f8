"""Choices that are run before they are written, on a survey and a network that are formulas."""

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from lbm_lora.calibrate import Check
from lbm_lora.errors import InputError
from lbm_lora.extract import Choice
from lbm_lora.workflows.choosing import Chosen, Policy
from lbm_lora.workflows.search import Proposal
from lbm_lora.workflows.trial import Pictures
from lbm_lora.workflows.trying import tried

BEST = 12_000


def size(nbytes: int) -> Choice:
    """A choice of so many bytes: one dB is foreseen for every 100 of them."""
    return Choice(ranks={}, nbytes=nbytes, error_sq=0.0)


class Survey(Chosen):
    """What `tried` asks of one, without any delta."""

    def __init__(self, checks: bool = True) -> None:
        self.checks = (Check(timestep=1000.0, probability=1.0, state=torch.zeros(1, 4, 2, 2)),) if checks else ()
        self.learned: dict[int, float | None] = {}

    def choices(self, policy: Policy) -> list[Choice]:
        return [size(nbytes) for nbytes in policy.sizes or (700,)]

    def propose(self, decibel: float) -> Proposal[Choice] | None:
        nbytes = BEST if decibel == math.inf else max(0, math.ceil(decibel * 100))
        return Proposal(found=size(nbytes), nbytes=nbytes, foreseen=nbytes / 100) if nbytes <= BEST else None

    def learn(self, choice: Choice, measured: float | None) -> None:
        self.learned[choice.nbytes] = measured

    @contextmanager
    def emission(self, choices: Sequence[Choice]) -> Generator[Any]:
        yield [(choice,) for choice in choices]


@dataclass
class Network:
    """What `tried` asks of a `Trial`: errors are 6 dB worse than foreseen, the worst of two pictures 20 dB better."""

    has_pictures: bool = True
    taken: list[int] = field(default_factory=list)

    def take(self, outcomes: Iterable[Choice] = ()) -> None:
        self.taken.append(sum(one.nbytes for one in outcomes))

    def error(self) -> float:
        return 10 ** ((6 - self.taken[-1] / 100) / 20)

    def pictures(self) -> Pictures | None:
        worst = 20 + self.taken[-1] / 100
        return Pictures(psnrs=(("a.png", worst + 4), ("b.png", worst))) if self.has_pictures else None


def run(survey: Survey, policy: Policy, network: Network | None) -> list[Any]:
    return tried(survey, policy, cast(Any, network))


def test_without_a_network_choices_stay_as_they_are() -> None:
    survey = Survey()
    assert [one.choice.nbytes for one in run(survey, Policy(sizes=(3000, 500)), None)] == [3000, 500]
    assert survey.learned == {}


def test_every_size_is_run_and_learned_from() -> None:
    survey = Survey()
    found = run(survey, Policy(sizes=(3000, 500)), Network())
    assert [(one.choice.nbytes, one.pictures.worst_psnr, one.pictures.worst_image) for one in found] == [
        (3000, 50.0, "b.png"),
        (500, 25.0, "b.png"),
    ]
    assert survey.learned == {3000: pytest.approx(10 ** (-24 / 20)), 500: pytest.approx(10 ** (1 / 20))}
    assert found[0].errors == {"measured_worst_psnr": 50.0}


def test_an_error_is_reached_and_hardly_passed() -> None:
    survey, network = Survey(), Network(has_pictures=False)
    (found,) = run(survey, Policy(error=0.01), network)  # 40 dB below the output: 46 foreseen
    assert 4600 <= found.choice.nbytes <= 4640
    assert network.taken[-1] == found.choice.nbytes
    assert found.errors == {}


def test_a_psnr_starts_from_that_of_the_base() -> None:
    network = Network()
    (found,) = run(Survey(), Policy(psnr=45.0), network)
    assert network.taken[0] == 0
    assert 2500 <= found.choice.nbytes <= 2540
    assert len(network.taken) == 2  # the base says at once what is needed
    assert 45.0 <= found.pictures.worst_psnr == pytest.approx(found.pictures.predicted_psnr)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Policy(psnr=150.0), r"^--min_psnr 150: the best file, with every change whole, gives 140\.00 dB"),
        (Policy(error=1e-6), r"^--max_output_error 1e-06: the best file, with every change whole, leaves 2e-06"),
    ],
)
def test_what_the_best_file_does_not_reach_is_an_error(policy: Policy, text: str) -> None:
    network = Network()
    with pytest.raises(InputError, match=text):
        run(Survey(), policy, network)
    assert BEST in network.taken


def test_an_error_without_states_is_not_run_for() -> None:
    """With pictures alone there is nothing to measure an error on: the survey decides."""
    (found,) = run(Survey(checks=False), Policy(error=0.01), Network())
    assert found.choice.nbytes == 700
