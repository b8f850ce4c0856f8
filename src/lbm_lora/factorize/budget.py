"""Allocate a file's bytes to deltas: the least total squared error for a file size, and the reverse.

Each delta offers choices: nothing, a rank, or the dense delta if that is cheaper than its factors. On the lower convex
hull of its (bytes, squared error) points the gain per byte falls from step to step, so taking the steps of all hulls
in order of gain per byte gives the least error at every size along the way (Fox, "Discrete Optimization via Marginal
Analysis", 1966). Between two such sizes the result is off by less than the gain of one step.

Bits are shared out in another way: every rank of every module may have any of the widths, or be left out. For a price
per byte each takes the width with the least error plus price * bytes; a module may instead be stored dense, or not at
all. All choices along the prices are optimal for their own size (Everett, "Generalized Lagrange Multiplier Method",
1963; for bits in transform coding Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers",
1988), so the price is bisected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lbm_lora.factorize.grid import WIDTHS

_DENSE = -1  # stands for the dense delta in arrays of ranks
_SLACK = 1e-9  # the same sum in another order rounds differently
_HALVINGS = 60
_CHEAPEST, _DEAREST = -320.0, 120.0  # decimal logarithm of prices in dB


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
    """

    ranks: tuple[int | None, ...]
    size: int
    error_sq: float


def curve(spectra: Sequence[Spectrum], budgets: Sequence[int]) -> list[Allocation]:
    """Return the choices with the least error that fit into each budget of bytes; below 1 byte nothing fits."""
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
    """Steps along the hulls of all deltas, by falling gain per byte; the steps of each delta keep their order."""

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


@dataclass(frozen=True, kw_only=True)
class WidthCosts:
    """Bytes and remaining errors of the ranks of one module, or of one vector, at each width.

    Attributes:
        errors: (1 + widths, rank): the squared error that each rank leaves if it is left out, or at each of `WIDTHS`.
        nbytes: (1 + widths,): bytes of each rank; 0 for none.
        rest: the squared error that is left at best, beyond these ranks.
        fixed_bytes: bytes of having any rank at all.
        dense_errors: (1 + widths,): the same for the dense delta, infinite at first; None if it is not a choice.
        is_needed: whether it may not be left out.
    """

    errors: Float64[np.ndarray, "choices rank"]
    nbytes: Int64[np.ndarray, " choices"]
    rest: float = 0.0
    fixed_bytes: int = 0
    dense_errors: Float64[np.ndarray, " choices"] | None = None
    dense_bytes: Int64[np.ndarray, " choices"] | None = None
    is_needed: bool = False


@dataclass(frozen=True)
class WidthAllocation:
    """Chosen widths.

    Attributes:
        widths: of each of the costs: bits of each rank, 0 for those left out; None if it is stored dense.
        dense: bits of those that are stored dense, 0 for others.
    """

    widths: tuple[tuple[int, ...] | None, ...]
    dense: tuple[int, ...]
    nbytes: int
    error_sq: float


def allocate_widths(costs: Sequence[WidthCosts], budget: int) -> WidthAllocation:
    """Return the choice with the least error that fits into `budget` bytes; if none does, the smallest."""
    return _bisected(costs, lambda found: found.nbytes <= budget, is_dearest_wanted=False)


def allocate_widths_for(costs: Sequence[WidthCosts], target_error_sq: float) -> WidthAllocation:
    """Return the smallest choice that leaves at most this squared error; if none does, the best."""
    return _bisected(costs, lambda found: found.error_sq <= target_error_sq, is_dearest_wanted=True)


def _bisected(
    costs: Sequence[WidthCosts], is_enough: Callable[["_Widths"], bool], *, is_dearest_wanted: bool
) -> WidthAllocation:
    """Return the choice at the lowest price, or at the highest, that is enough."""
    groups = _width_groups(costs)
    cheapest, dearest = _CHEAPEST, _DEAREST
    at_cheapest, at_dearest = _at_price(groups, cheapest), _at_price(groups, dearest)
    safe = at_cheapest if is_dearest_wanted else at_dearest
    for _ in range(_HALVINGS):
        if at_cheapest.nbytes == at_dearest.nbytes and at_cheapest.error_sq == at_dearest.error_sq:
            break  # all prices between give the same
        price = (cheapest + dearest) / 2
        found = _at_price(groups, price)
        fits = is_enough(found)
        safe = found if fits else safe
        if fits == is_dearest_wanted:
            cheapest, at_cheapest = price, found
        else:
            dearest, at_dearest = price, found
    return safe.allocation()


@dataclass(frozen=True)
class _WidthGroups:
    """All costs as flat arrays.

    Attributes:
        dense_errors, dense_bytes: of each choice of each of the costs; infinite errors where dense is not a choice.
    """

    owners: Int64[np.ndarray, " ranks"]
    errors: Float64[np.ndarray, "choices ranks"]
    nbytes: Int64[np.ndarray, "choices ranks"]
    rest: Float64[np.ndarray, " costs"]
    fixed_bytes: Int64[np.ndarray, " costs"]
    is_needed: Bool[np.ndarray, " costs"]
    dense_errors: Float64[np.ndarray, "choices costs"]
    dense_bytes: Int64[np.ndarray, "choices costs"]


def _width_groups(costs: Sequence[WidthCosts]) -> _WidthGroups:
    counts = [one.errors.shape[1] for one in costs]
    prices = (np.repeat(one.nbytes[:, None], one.errors.shape[1], axis=1) for one in costs)
    choices = 1 + len(WIDTHS)
    nothing = np.zeros((choices, 0))
    no_choice, no_bytes = np.full(choices, np.inf), np.zeros(choices, np.int64)
    return _WidthGroups(
        np.repeat(np.arange(len(costs)), counts),
        np.concatenate([nothing, *(one.errors for one in costs)], axis=1),
        np.concatenate([nothing.astype(np.int64), *prices], axis=1),
        np.array([one.rest for one in costs]),
        np.array([one.fixed_bytes for one in costs], np.int64),
        np.array([one.is_needed for one in costs], bool),
        _columns([no_choice if one.dense_errors is None else one.dense_errors for one in costs], np.float64),
        _columns([no_bytes if one.dense_bytes is None else one.dense_bytes for one in costs], np.int64),
    )


def _columns(each: Sequence[np.ndarray], dtype: type[np.number]) -> np.ndarray:
    return np.array(each, dtype).reshape(-1, 1 + len(WIDTHS)).T


@dataclass(frozen=True)
class _Widths:
    """Choices at one price. Widths are listed only on request, since there are many."""

    groups: _WidthGroups
    best: Int64[np.ndarray, " ranks"]
    dense: Int64[np.ndarray, " costs"]
    is_dense: Bool[np.ndarray, " costs"]
    nbytes: int
    error_sq: float

    def allocation(self) -> WidthAllocation:
        chosen = np.array([0, *WIDTHS])
        bounds = np.searchsorted(self.groups.owners, np.arange(len(self.is_dense) + 1)).tolist()
        widths = chosen[self.best].tolist()
        return WidthAllocation(
            tuple(
                None if dense_one else tuple(widths[start:end])
                for (start, end), dense_one in zip(pairwise(bounds), self.is_dense.tolist(), strict=True)
            ),
            tuple(np.where(self.is_dense, chosen[self.dense], 0).tolist()),
            self.nbytes,
            self.error_sq,
        )


def _at_price(groups: _WidthGroups, price: float) -> _Widths:
    """Return the best choice at a price per byte.

    Args:
        price: its decimal logarithm, times ten.
    """
    rate = 10 ** (price / 10)
    count, ranks = len(groups.rest), np.arange(len(groups.owners))
    values = groups.errors + rate * groups.nbytes
    values[0, groups.is_needed[groups.owners]] = np.inf
    best = values.argmin(axis=0)
    taken = np.bincount(groups.owners, values[best, ranks], count) + groups.rest + rate * groups.fixed_bytes
    left_out = np.bincount(groups.owners, groups.errors[0], count) + groups.rest
    left_out[groups.is_needed] = np.inf
    dense = groups.dense_errors + rate * groups.dense_bytes
    dense_best, each = dense.argmin(axis=0), np.arange(count)
    is_dense = dense[dense_best, each] < np.minimum(taken, left_out)
    is_taken = ~is_dense & (taken < left_out)
    best[~is_taken[groups.owners]] = 0
    errors = np.bincount(groups.owners, groups.errors[best, ranks], count) + groups.rest
    nbytes = np.bincount(groups.owners, groups.nbytes[best, ranks], count) + groups.fixed_bytes * is_taken
    errors = np.where(is_dense, groups.dense_errors[dense_best, each], errors)
    nbytes = np.where(is_dense, groups.dense_bytes[dense_best, each], nbytes)
    return _Widths(groups, best, dense_best, is_dense, int(nbytes.sum()), float(errors.sum()))
