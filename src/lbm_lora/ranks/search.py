"""Search for the smallest file whose result meets a target: predict, run, correct, and run again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lbm_lora.ranks.allocate import Choice

_ROUNDS = 8
_ABOVE = 0.1  # dB to aim above the target, doubled after each run that falls short
_NEAR = 0.4  # dB above the target that count as close enough
_CLOSE = 0.03  # of a file's bytes: if one only this much smaller falls short, the file is close enough too
_SLOPES = (0.4, 1.5)  # trusted range of the slope between two runs: dB of the result per predicted dB
_INSIDE = 0.1  # fraction of the distance between two runs to keep from either


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A file that could be written.

    Attributes:
        foreseen: dB predicted by the survey alone. The result differs from it by a slowly changing offset.
    """

    choice: Choice
    foreseen: float

    @property
    def nbytes(self) -> int:
        return self.choice.nbytes


@dataclass(frozen=True, kw_only=True)
class Run(Proposal):
    """A file that was run.

    Attributes:
        predicted: dB expected from the runs before it.
    """

    predicted: float
    result: float


def smallest(
    target: float,
    propose: Callable[[float], Proposal | None],
    measure: Callable[[Choice], float],
    *,
    offset: float,
) -> Run:
    """Return the smallest tried file whose result is at least `target` dB; the best file if that falls short.

    Args:
        propose: returns the smallest file predicted to reach the given dB, or None if there is none; the best file for
            infinite dB.
        offset: first guess of the result minus the prediction.
    """
    runs: list[Run] = []

    def try_out(proposal: Proposal | None) -> bool:
        """Run a file, the best one without a proposal; return whether it is another one than before."""
        proposal = proposal or propose(math.inf)
        assert proposal is not None
        is_new = proposal.nbytes not in {run.nbytes for run in runs}
        if is_new:
            runs.append(_run(proposal, measure, runs, offset))
        return is_new

    aim = target + _ABOVE - offset
    while len(runs) < _ROUNDS and try_out(propose(aim)) and not _is_near(runs, target):
        aim = _next(runs, target)
    if all(run.result < target for run in runs):
        try_out(None)
    enough = [run for run in runs if run.result >= target]
    return min(enough, key=lambda run: run.nbytes) if enough else max(runs, key=lambda run: run.result)


def _run(proposal: Proposal, measure: Callable[[Choice], float], before: Sequence[Run], offset: float) -> Run:
    """Run a file. The run with the nearest predicted dB gives the expected result."""
    predicted = proposal.foreseen + offset
    if before:
        nearest = min(before, key=lambda run: abs(run.foreseen - proposal.foreseen))
        predicted = nearest.result + proposal.foreseen - nearest.foreseen
    result = measure(proposal.choice)
    return Run(choice=proposal.choice, foreseen=proposal.foreseen, predicted=predicted, result=result)


def _is_near(runs: Sequence[Run], target: float) -> bool:
    """Return whether a smaller file is not worth a run, by the last result or by the largest file that falls short."""
    if target <= runs[-1].result <= target + _NEAR:
        return True
    enough = min((run.nbytes for run in runs if run.result >= target), default=0)
    short = [run.nbytes for run in runs if run.result < target and run.nbytes < enough]
    return max(short, default=0) > (1 - _CLOSE) * enough


def _next(runs: Sequence[Run], target: float) -> float:
    """Return the predicted dB to request so that the result lands slightly above the target.

    It lies on the line through a run that falls short and one that does not. Results need not rise with the prediction,
    since the worst of several images may change, so runs are ordered by their prediction.
    """
    short = sorted((run for run in runs if run.result < target), key=lambda run: run.foreseen)
    enough = min((run for run in runs if run.result >= target), key=lambda run: run.foreseen, default=None)
    if enough is None:
        last, slope = short[-1], 1.0
        if len(short) > 1 and last.foreseen > short[-2].foreseen:
            measured = (last.result - short[-2].result) / (last.foreseen - short[-2].foreseen)
            slope = measured if _SLOPES[0] <= measured <= _SLOPES[1] else 1.0
        return last.foreseen + (target + _ABOVE * 2 ** len(short) - last.result) / slope
    before = [run for run in short if run.foreseen < enough.foreseen]
    if not before:
        return enough.foreseen - (enough.result - target - _ABOVE)
    last = before[-1]
    share = (target + _ABOVE - last.result) / (enough.result - last.result)
    return last.foreseen + min(max(share, _INSIDE), 1 - _INSIDE) * (enough.foreseen - last.foreseen)
