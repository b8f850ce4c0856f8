"""Allocate a file's bytes to the bits of single ranks and vectors: the least total squared error for a size.

Every rank of every module may have any of the widths, or be left out. For a price per byte each takes the width with
the least error plus price * bytes; a module may instead be stored dense, or not at all. All choices along the prices
are optimal for their own size (Everett, "Generalized Lagrange Multiplier Method", 1963; for bits in transform coding
Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988), so the price is bisected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lbm_lora.factorize.grid import WIDTHS

_HALVINGS = 60
_CHEAPEST, _DEAREST = -320.0, 120.0  # decimal logarithm of prices in dB


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
    costs: Sequence[WidthCosts], is_enough: Callable[["_Taken"], bool], *, is_dearest_wanted: bool
) -> WidthAllocation:
    """Return the choice at the lowest price, or at the highest, that is enough."""
    groups = _grouped(costs)
    cheapest, dearest = _CHEAPEST, _DEAREST
    at_cheapest, at_dearest = _at(groups, cheapest), _at(groups, dearest)
    safe = at_cheapest if is_dearest_wanted else at_dearest
    for _ in range(_HALVINGS):
        if at_cheapest.nbytes == at_dearest.nbytes and at_cheapest.error_sq == at_dearest.error_sq:
            break  # all prices between give the same
        price = (cheapest + dearest) / 2
        found = _at(groups, price)
        fits = is_enough(found)
        safe = found if fits else safe
        if fits == is_dearest_wanted:
            cheapest, at_cheapest = price, found
        else:
            dearest, at_dearest = price, found
    return safe.allocation()


@dataclass(frozen=True)
class _Groups:
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


def _grouped(costs: Sequence[WidthCosts]) -> _Groups:
    counts = [one.errors.shape[1] for one in costs]
    prices = (np.repeat(one.nbytes[:, None], one.errors.shape[1], axis=1) for one in costs)
    choices = 1 + len(WIDTHS)
    nothing = np.zeros((choices, 0))
    no_choice, no_bytes = np.full(choices, np.inf), np.zeros(choices, np.int64)
    return _Groups(
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
class _Taken:
    """Choices at one price. Widths are listed only on request, since there are many."""

    groups: _Groups
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


def _at(groups: _Groups, price: float) -> _Taken:
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
    return _Taken(groups, best, dense_best, is_dense, int(nbytes.sum()), float(errors.sum()))
