"""The smallest file with which something comes out well enough: foreseen, run, corrected, and run again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_ROUNDS = 8
_ABOVE = 0.1  # dB that are aimed at above the target, and twice as much after each run that falls short
_NEAR = 0.4  # dB above the target that are near enough
_CLOSE = 0.03  # of a file's bytes: so much smaller, one that falls short is near enough too
_SLOPES = (0.4, 1.5)  # dB of the result for each dB foreseen, as far as two runs are believed
_INSIDE = 0.1  # share of the way between two runs that is left on either side

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Proposal(Generic[Found]):
    """A file that could be written.

    Attributes:
        nbytes: of it.
        foreseen: dB, by the survey alone. The result differs from it by an offset that changes slowly with it.
    """

    found: Found
    nbytes: int
    foreseen: float


@dataclass(frozen=True, kw_only=True)
class Run(Generic[Found]):
    """A file that was tried.

    Attributes:
        predicted: dB, what the runs before it let expect.
        result: dB, as it came out.
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
    """The smallest of the tried files whose result is `target` dB or more; the best file where that falls short.

    Args:
        propose: the smallest file of which so many dB or more are foreseen, or None where there is none; the best file
            for infinite dB.
        measure: the result of a file, dB.
        offset: the first guess of the result less what is foreseen.
    """
    runs: list[Run[Found]] = []
    aim = target + _ABOVE - offset
    while len(runs) < _ROUNDS:
        proposal = propose(aim) or _best(propose)
        if proposal.nbytes in {run.proposal.nbytes for run in runs}:
            break
        runs.append(_run(proposal, measure, runs, offset))
        if _is_near(runs, target):
            break
        aim = _next(runs, target)
    if all(run.result < target for run in runs) and _best(propose).nbytes not in {r.proposal.nbytes for r in runs}:
        runs.append(_run(_best(propose), measure, runs, offset))
    enough = [run for run in runs if run.result >= target]
    return min(enough, key=lambda run: run.proposal.nbytes) if enough else max(runs, key=lambda run: run.result)


def _best(propose: Callable[[float], Proposal[Found] | None]) -> Proposal[Found]:
    best = propose(math.inf)
    if best is None:
        raise AssertionError("there is a best file")
    return best


def _run(
    proposal: Proposal[Found], measure: Callable[[Found], float], before: Sequence[Run[Found]], offset: float
) -> Run[Found]:
    """Try a file. The run whose foreseen dB are nearest says what to expect."""
    predicted = proposal.foreseen + offset
    if before:
        nearest = min(before, key=lambda run: abs(run.proposal.foreseen - proposal.foreseen))
        predicted = nearest.result + proposal.foreseen - nearest.proposal.foreseen
    return Run(proposal=proposal, predicted=predicted, result=measure(proposal.found))


def _is_near(runs: Sequence[Run[Found]], target: float) -> bool:
    """Whether a still smaller file is not worth a run: by the last result, or by the largest file that falls short."""
    if target <= runs[-1].result <= target + _NEAR:
        return True
    enough = min((run.proposal.nbytes for run in runs if run.result >= target), default=0)
    short = [run.proposal.nbytes for run in runs if run.result < target and run.proposal.nbytes < enough]
    return max(short, default=0) > (1 - _CLOSE) * enough


def _next(runs: Sequence[Run[Found]], target: float) -> float:
    """What to ask of the survey so that the result comes out a little above the target.

    Between a run that falls short and one that does not, on the line through both. Results need not rise with what is
    foreseen, the worst of some images jumps, so the ends count by what was foreseen of them.
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
