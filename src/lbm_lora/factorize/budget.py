"""Allocate a file's bytes to deltas: the least total squared error for a file size, and the reverse.

Each delta offers choices: nothing, a rank, or the dense delta if that is cheaper than its factors. On the lower convex
hull of its (bytes, squared error) points the gain per byte falls from step to step, so taking the steps of all hulls
in order of gain per byte gives the least error at every size along the way (Fox, "Discrete Optimization via Marginal
Analysis", 1966). Between two such sizes the result is off by less than the gain of one step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lbm_lora.errors import InputError

_DENSE = -1  # stands for the dense delta in arrays of ranks
_SLACK = 1e-9  # the same sum in another order rounds differently


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Cost and remaining error of one delta at each rank. All deltas use the same unit of error.

    Attributes:
        squares: (k,), non-negative, non-increasing: how much each of ranks 1 to k reduces the squared error.
        rest: the squared error left at rank k, the highest.
        rank_bytes: bytes of each rank.
        fixed_bytes: bytes of having factors at all: alpha, and the names of three tensors in the file.
        dense_bytes: bytes of the dense delta, which leaves no error; None if it is not a choice.
    """

    squares: Float64[np.ndarray, " k"]
    rest: float
    rank_bytes: int
    fixed_bytes: int = 0
    dense_bytes: int | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.squares).all() and (self.squares >= 0).all() and 0 <= self.rest < math.inf):
            raise InputError("a spectrum has values that are negative or not finite.")
        if self.rank_bytes < 1 or self.fixed_bytes < 0 or (self.dense_bytes is not None and self.dense_bytes < 1):
            raise InputError(
                f"a rank ({self.rank_bytes} bytes) and a dense delta ({self.dense_bytes}) must take at least 1."
            )

    def size(self, rank: int | None) -> int:
        """Return the bytes of a rank, of nothing (0), or of the dense delta (None)."""
        if rank is None:
            return self.dense_bytes or 0
        return self.fixed_bytes + rank * self.rank_bytes if rank else 0

    def error_sq(self, rank: int | None) -> float:
        """Return the squared error left by a rank, by nothing (0), or by the dense delta (None)."""
        return 0.0 if rank is None else float(self.errors()[rank])

    def errors(self) -> Float64[np.ndarray, " ranks"]:
        """Squared errors of ranks 0 to k, summed from the smallest so that small values keep their precision."""
        return np.cumsum(np.append(self.squares, self.rest)[::-1])[::-1]


@dataclass(frozen=True)
class Allocation:
    """Chosen ranks of all deltas, with their total size and error.

    Attributes:
        ranks: rank of each delta, in the order of the spectra: 0 is nothing, None is the dense delta.
        size: total bytes.
        error_sq: total squared error.
    """

    ranks: tuple[int | None, ...]
    size: int
    error_sq: float


def allocate(spectra: Sequence[Spectrum], budget: int) -> Allocation:
    """Return the choices with the least error that fit into `budget` bytes; nothing for every delta below 1 byte."""
    return curve(spectra, [budget])[0]


def curve(spectra: Sequence[Spectrum], budgets: Sequence[int]) -> list[Allocation]:
    """Run `allocate` for many budgets at once."""
    steps = _steps(spectra)
    return [_allocation(spectra, steps, _within(steps, budget)) for budget in budgets]


def allocate_error(spectra: Sequence[Spectrum], target_error_sq: float) -> Allocation:
    """Return the fewest bytes, up to the last step, that leave a squared error of at most `target_error_sq`.

    If even the highest choices leave more, they are returned; check `error_sq`.
    """
    steps = _steps(spectra)
    order = np.arange(len(steps.gains))
    lowest = _allocation(spectra, steps, order >= 0).error_sq
    before = lowest + np.cumsum(steps.gains[::-1])[::-1]  # the squared error before each step
    count = np.count_nonzero(before > target_error_sq * (1 + _SLACK))
    while True:
        found = _allocation(spectra, steps, order < count)
        if found.error_sq <= target_error_sq or count == len(order):
            return found
        count += 1


def error_rank(spectrum: Spectrum, relative_error: float) -> int | None:
    """Return the smallest rank with sqrt(squared error / energy) <= `relative_error`; None if rank k leaves more."""
    return _smallest(spectrum, relative_error**2)


def energy_rank(spectrum: Spectrum, share: float) -> int | None:
    """Return the smallest rank that keeps `share`, 0 to 1, of a delta's energy; None if rank k keeps less."""
    return _smallest(spectrum, 1 - share)


def _smallest(spectrum: Spectrum, left: float) -> int | None:
    errors = spectrum.errors()
    enough = np.flatnonzero(errors <= left * errors[0])
    return int(enough[0]) if enough.size else None


@dataclass(frozen=True)
class _Steps:
    """Steps along the hulls of all deltas, by falling gain per byte; the steps of each delta keep their order.

    Attributes:
        owners: index of the delta.
        ranks: rank that the step leads to.
        sizes: bytes that it adds.
        gains: reduction of the squared error.
        rates: gains / sizes.
    """

    owners: Int64[np.ndarray, " steps"]
    ranks: Int64[np.ndarray, " steps"]
    sizes: Int64[np.ndarray, " steps"]
    gains: Float64[np.ndarray, " steps"]
    rates: Float64[np.ndarray, " steps"]


def _steps(spectra: Sequence[Spectrum]) -> _Steps:
    none, nothing = np.zeros(0, np.int64), np.zeros(0)
    hulls = [_Steps(none, none, none, nothing, nothing), *(_hull(*item) for item in enumerate(spectra))]
    owners, ranks, sizes = (
        np.concatenate([getattr(hull, name) for hull in hulls]) for name in ("owners", "ranks", "sizes")
    )
    gains, rates = (np.concatenate([getattr(hull, name) for hull in hulls]) for name in ("gains", "rates"))
    order = np.argsort(-rates, kind="stable")
    return _Steps(owners[order], ranks[order], sizes[order], gains[order], rates[order])


def _hull(owner: int, spectrum: Spectrum) -> _Steps:
    """Return the steps from nothing along the lower convex hull of a delta's choices.

    Ranks are convex except at the ends: the fixed bytes make the first rank expensive, so the first step goes to the
    rank with the best ratio; and the dense delta replaces the ranks from which a step to it gains more per byte than
    their own next step.
    """
    ranks = np.arange(len(spectrum.squares) + 1)
    sizes = np.where(ranks > 0, spectrum.fixed_bytes + ranks * spectrum.rank_bytes, 0)
    errors = spectrum.errors()
    if len(ranks) > 1:
        first = 1 + int(np.argmax((errors[0] - errors[1:]) / sizes[1:]))
        ranks, sizes, errors = (np.concatenate((part[:1], part[first:])) for part in (ranks, sizes, errors))
    if spectrum.dense_bytes is not None:
        below = sizes < spectrum.dense_bytes
        last = 1 + int(np.argmin(errors[below] / (spectrum.dense_bytes - sizes[below])))
        ends = (_DENSE, spectrum.dense_bytes, 0.0)
        ranks, sizes, errors = (
            np.append(part[:last], end) for part, end in zip((ranks, sizes, errors), ends, strict=True)
        )
    gains, added = -np.diff(errors), np.diff(sizes)
    worth = int(np.argmin(np.append(gains > 0, False)))  # a delta's steps end when there is nothing left to gain
    rates = np.minimum.accumulate(gains[:worth] / added[:worth])
    return _Steps(np.full(worth, owner), ranks[1 : 1 + worth], added[:worth], gains[:worth], rates)


def _within(steps: _Steps, budget: int) -> Bool[np.ndarray, " steps"]:
    """Return which steps to take: all up to the first that is too large, then any others that still fit."""
    taken = np.cumsum(steps.sizes) <= budget
    left = budget - int(steps.sizes[taken].sum())
    closed: set[int] = set()  # deltas with a step that was too large: their later steps depend on it
    smallest = steps.sizes.min(initial=budget)
    for index in np.flatnonzero(~taken):
        if left < smallest:
            break
        owner, size = int(steps.owners[index]), int(steps.sizes[index])
        if size > left:
            closed.add(owner)
        elif owner not in closed:
            taken[index] = True
            left -= size
    return taken


def _allocation(spectra: Sequence[Spectrum], steps: _Steps, taken: Bool[np.ndarray, " steps"]) -> Allocation:
    ranks: list[int | None] = [0] * len(spectra)
    for owner, rank in zip(steps.owners[taken].tolist(), steps.ranks[taken].tolist(), strict=True):
        ranks[owner] = None if rank == _DENSE else rank
    chosen = list(zip(spectra, ranks, strict=True))
    size = sum(spectrum.size(rank) for spectrum, rank in chosen)
    return Allocation(tuple(ranks), size, sum(spectrum.error_sq(rank) for spectrum, rank in chosen))
