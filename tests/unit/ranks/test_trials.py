"""Choices that are run before they are written, on a survey and a network that are formulas."""

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from lbm_lora.errors import InputError
from lbm_lora.ranks import Choice, RankAllocator, RankRule, TrialErrors, TrialImages
from lbm_lora.ranks.rules import ErrorLimit, PsnrFloor, SizeLimits
from lbm_lora.ranks.search import Proposal
from lbm_lora.ranks.trials import Chooser

BEST = 12_000


def size(nbytes: int) -> Choice:
    """A choice of so many bytes: one dB is foreseen for every 100 of them."""
    return Choice(ranks={}, nbytes=nbytes, error_sq=0.0)


class Survey(RankAllocator):
    """What a `Chooser` asks of an allocator and a predictor, without any delta."""

    def __init__(self) -> None:
        self.reference_sq = 1.0
        self.learned: dict[int, float | None] = {}

    def within(self, nbytes: Sequence[int]) -> list[Choice]:
        return [size(one) for one in nbytes]

    def error(self, target_sq: float, reference_sq: float) -> Choice:
        return size(700)

    def propose(self, decibel: float) -> Proposal | None:
        nbytes = BEST if decibel == math.inf else max(0, math.ceil(decibel * 100))
        return Proposal(choice=size(nbytes), foreseen=nbytes / 100) if nbytes <= BEST else None

    def learn(self, choice: Choice, measured: TrialErrors | None) -> None:
        self.learned[choice.nbytes] = measured.typical if measured else None

    @contextmanager
    def deltas_of(self, choice: Choice) -> Generator[Any]:
        yield [choice]


@dataclass
class Network:
    """What a `Chooser` asks of a `Trial`: errors are 6 dB worse than foreseen, the worst image 20 dB better."""

    has_images: bool = True
    has_points: bool = True
    taken: list[int] = field(default_factory=list)

    def take(self, deltas: Iterable[Choice] = ()) -> None:
        self.taken.append(sum(one.nbytes for one in deltas))

    def error(self) -> TrialErrors | None:
        typical = 10 ** ((6 - self.taken[-1] / 100) / 20)
        return TrialErrors(typical=typical, low=typical / 2, high=2 * typical)

    def images(self) -> TrialImages | None:
        worst = 20 + self.taken[-1] / 100
        return TrialImages(psnrs=(("a.png", worst + 4), ("b.png", worst))) if self.has_images else None


def size_limits(*nbytes: int) -> SizeLimits:
    return SizeLimits(nbytes=nbytes, words=tuple(map(str, nbytes)))


def error_limit(value: float) -> ErrorLimit:
    return ErrorLimit(option="max_output_error", value=value)


def psnr_floor(value: float) -> PsnrFloor:
    return PsnrFloor(option="min_psnr", value=value)


def run(survey: Survey, rule: RankRule, network: Network | None) -> list[Any]:
    chooser = object.__new__(Chooser)  # whose types are checked when it is made
    for name, value in {"allocator": survey, "predictor": survey, "deltas_of": survey.deltas_of}.items():
        object.__setattr__(chooser, name, value)
    return chooser.choose(rule, cast(Any, network))


def test_every_size_is_run_and_learned_from() -> None:
    survey = Survey()
    found = run(survey, size_limits(3000, 500), Network())
    assert [(one.choice.nbytes, one.images.worst_psnr, one.images.worst_image) for one in found] == [
        (3000, 50.0, "b.png"),
        (500, 25.0, "b.png"),
    ]
    assert survey.learned == {3000: pytest.approx(10 ** (-24 / 20)), 500: pytest.approx(10 ** (1 / 20))}


def test_an_error_is_reached_and_hardly_passed() -> None:
    survey, network = Survey(), Network(has_images=False)
    (found,) = run(survey, error_limit(0.01), network)  # 40 dB below the output: 46 foreseen
    assert 4600 <= found.choice.nbytes <= 4640
    assert network.taken[-1] == found.choice.nbytes
    assert found.images is None


def test_a_psnr_starts_from_that_of_the_base() -> None:
    network = Network()
    (found,) = run(Survey(), psnr_floor(45.0), network)
    assert network.taken[0] == 0
    assert 2500 <= found.choice.nbytes <= 2540
    assert len(network.taken) == 2  # the base says at once what is needed
    assert 45.0 <= found.images.worst_psnr == pytest.approx(found.images.predicted_psnr)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (psnr_floor(150.0), r"^min_psnr 150 is out of reach: the best file, with every delta dense, gives 140\.00 dB"),
        (
            error_limit(1e-6),
            r"^max_output_error 1e-06 is out of reach: the best file, with every delta dense, has an error of 2e-06",
        ),
    ],
)
def test_what_the_best_file_does_not_reach_is_an_error(rule: RankRule, text: str) -> None:
    network = Network()
    with pytest.raises(InputError, match=text):
        run(Survey(), rule, network)
    assert BEST in network.taken
