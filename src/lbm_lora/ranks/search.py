"""Search for the smallest file whose result meets a target: predict, run, correct, and run again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_ROUNDS = 8
_ABOVE = 0.1  # dB to aim above the target, doubled after each run that falls short
_NEAR = 0.4  # dB above the target that count as close enough
_CLOSE = 0.03  # of a file's bytes: if one only this much smaller falls short, the file is close enough too
_SLOPES = (0.4, 1.5)  # trusted range of the slope between two runs: dB of the result per predicted dB
_INSIDE = 0.1  # fraction of the distance between two runs to keep from either

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Proposal(Generic[Found]):
    """A file that could be written.

    Attributes:
        nbytes: bytes of the file.
        foreseen: dB predicted by the survey alone. The result differs from it by a slowly changing offset.
    """

    found: Found
    nbytes: int
    foreseen: float


@dataclass(frozen=True, kw_only=True)
class Run(Generic[Found]):
    """A file that was run.

    Attributes:
        predicted: dB expected from the runs before it.
        result: dB measured.
    """

    proposal: Proposal[Found]
    predicted: float
    result: float


def smallest(
    target: float,
    propose: Callable[[float], Proposal[Found] | None],
    measure: Callable[[Found], float],
    *,
    offset: float,
) -> Run[Found]:
    """Return the smallest tried file whose result is at least `target` dB; the best file if that falls short.

    Args:
        propose: returns the smallest file predicted to reach the given dB, or None if there is none; the best file for
            infinite dB.
        measure: returns the result of a file in dB.
        offset: first guess of the result minus the prediction.
    """
    runs: list[Run[Found]] = []

    def try_out(proposal: Proposal[Found] | None) -> bool:
        """Run a file, the best one without a proposal; return whether it is another one than before."""
        proposal = proposal or propose(math.inf)
        assert proposal is not None
        is_new = proposal.nbytes not in {run.proposal.nbytes for run in runs}
        if is_new:
            runs.append(_run(proposal, measure, runs, offset))
        return is_new

    aim = target + _ABOVE - offset
    while len(runs) < _ROUNDS and try_out(propose(aim)) and not _is_near(runs, target):
        aim = _next(runs, target)
    if all(run.result < target for run in runs):
        try_out(None)
    enough = [run for run in runs if run.result >= target]
    return min(enough, key=lambda run: run.proposal.nbytes) if enough else max(runs, key=lambda run: run.result)


def _run(
    proposal: Proposal[Found], measure: Callable[[Found], float], before: Sequence[Run[Found]], offset: float
) -> Run[Found]:
    """Run a file. The run with the nearest predicted dB gives the expected result."""
    predicted = proposal.foreseen + offset
    if before:
        nearest = min(before, key=lambda run: abs(run.proposal.foreseen - proposal.foreseen))
        predicted = nearest.result + proposal.foreseen - nearest.proposal.foreseen
    return Run(proposal=proposal, predicted=predicted, result=measure(proposal.found))


def _is_near(runs: Sequence[Run[Found]], target: float) -> bool:
    """Return whether a smaller file is not worth a run, by the last result or by the largest file that falls short."""
    if target <= runs[-1].result <= target + _NEAR:
        return True
    enough = min((run.proposal.nbytes for run in runs if run.result >= target), default=0)
    short = [run.proposal.nbytes for run in runs if run.result < target and run.proposal.nbytes < enough]
    return max(short, default=0) > (1 - _CLOSE) * enough


def _next(runs: Sequence[Run[Found]], target: float) -> float:
    """Return the predicted dB to request so that the result lands slightly above the target.

    It lies on the line through a run that falls short and one that does not. Results need not rise with the prediction,
    since the worst of several images may change, so runs are ordered by their prediction.
    """
    short = sorted((run for run in runs if run.result < target), key=_foreseen)
    enough = min((run for run in runs if run.result >= target), key=_foreseen, default=None)
    if enough is None:
        last, slope = short[-1], 1.0
        if len(short) > 1 and _foreseen(last) > _foreseen(short[-2]):
            measured = (last.result - short[-2].result) / (_foreseen(last) - _foreseen(short[-2]))
            slope = measured if _SLOPES[0] <= measured <= _SLOPES[1] else 1.0
        return _foreseen(last) + (target + _ABOVE * 2 ** len(short) - last.result) / slope
    before = [run for run in short if _foreseen(run) < _foreseen(enough)]
    if not before:
        return _foreseen(enough) - (enough.result - target - _ABOVE)
    last = before[-1]
    share = (target + _ABOVE - last.result) / (enough.result - last.result)
    return _foreseen(last) + min(max(share, _INSIDE), 1 - _INSIDE) * (_foreseen(enough) - _foreseen(last))


def _foreseen(run: Run[Found]) -> float:
    return run.proposal.foreseen
