"""The search for the smallest file, on files that are numbers."""

import math
from collections.abc import Callable

import pytest

from lbm_lora.ranks import Choice
from lbm_lora.ranks.search import Proposal, smallest

Propose = Callable[[float], Proposal | None]


def files(step: int, best: int = 10_000) -> Propose:
    """A file of n bytes has n / 100 foreseen dB; sizes are multiples of `step`."""

    def propose(decibel: float) -> Proposal | None:
        nbytes = best if decibel == math.inf else step * math.ceil(max(decibel, 0) * 100 / step)
        choice = Choice(ranks={}, nbytes=nbytes, error_sq=0.0)
        return Proposal(choice=choice, foreseen=nbytes / 100) if nbytes <= best else None

    return propose


class Outcome:
    """Results of files, and how many were tried."""

    def __init__(self, result: Callable[[float], float]) -> None:
        self.tried: list[int] = []
        self._result = result

    def __call__(self, choice: Choice) -> float:
        self.tried.append(choice.nbytes)
        return self._result(choice.nbytes / 100)


@pytest.mark.parametrize("slope", [0.5, 0.8, 1.3])
@pytest.mark.parametrize("first", [0.0, 30.0])
def test_other_slopes_take_a_few_runs(slope: float, first: float) -> None:
    measure = Outcome(lambda foreseen: 10 + slope * foreseen)
    run = smallest(50.0, files(1), measure, offset=first)
    assert 50.0 <= run.result <= 50.5
    assert len(measure.tried) <= 8


def test_a_result_that_jumps() -> None:
    """As the worst of some images does: more bytes can be worse."""
    jumps = {0: 0.0, 1: 2.0, 2: -3.0, 3: 1.0, 4: -1.0}
    measure = Outcome(lambda foreseen: foreseen + jumps[int(foreseen) % 5])
    run = smallest(60.0, files(10), measure, offset=5.0)
    assert run.result >= 60.0
    assert run.nbytes == min(n for n in measure.tried if n / 100 + jumps[n // 100 % 5] >= 60.0)
    assert run.nbytes < 7000


def test_a_few_bytes_more_or_less_are_not_searched_for() -> None:
    """No file comes out near the target: what is left between two runs is less than 3 % of the bytes."""
    measure = Outcome(lambda foreseen: foreseen + (3 if foreseen >= 50.3 else -3))
    run = smallest(50.0, files(1), measure, offset=0.0)
    short = [nbytes for nbytes in measure.tried if nbytes < 5030]
    assert 5030 <= run.nbytes <= max(short) / 0.97
    assert len(measure.tried) <= 5


def test_what_cannot_be_reached_gives_the_best_file() -> None:
    measure = Outcome(lambda foreseen: min(foreseen, 50.0))
    run = smallest(55.0, files(1), measure, offset=0.0)
    assert run.result == 50.0
    assert 10_000 in measure.tried
