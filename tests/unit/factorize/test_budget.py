"""Shares of a file's bytes, for ranks and for bits, against every possible choice."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.factorize import (
    WIDTHS,
    Allocation,
    Spectrum,
    WidthCosts,
    allocate_error,
    allocate_widths,
    allocate_widths_for,
    curve,
)


def spectrum(
    squares: Sequence[float], *, rest: float = 0.0, cost: int = 1, fixed: int = 0, dense: int | None = None
) -> Spectrum:
    return Spectrum(squares=np.array(squares, float), rest=rest, rank_bytes=cost, fixed_bytes=fixed, dense_bytes=dense)


VALUES = st.one_of(st.just(0.0), st.integers(1, 1000).map(float), st.floats(1e-6, 1e3))


@st.composite
def some_spectra(draw: st.DrawFn, *, plain: bool = False) -> list[Spectrum]:
    """One to three deltas of up to four ranks; `plain`: factors alone, of one cost and without fixed bytes."""
    found: list[Spectrum] = []
    for _ in range(draw(st.integers(1, 3))):
        squares = sorted(draw(st.lists(VALUES, max_size=4)), reverse=True)
        if plain:
            found.append(spectrum(squares, rest=draw(VALUES)))
            continue
        fixed, dense = draw(st.integers(0, 5)), draw(st.none() | st.integers(1, 40))
        found.append(spectrum(squares, rest=draw(VALUES), cost=draw(st.integers(1, 9)), fixed=fixed, dense=dense))
    return found


def every_choice(spectra: Sequence[Spectrum]) -> list[tuple[int, float]]:
    """(size, squared error) of all combinations."""
    options: list[list[tuple[int, float]]] = []
    for one in spectra:
        ranks = [*range(len(one.squares) + 1), *([] if one.dense_bytes is None else [None])]
        options.append([(one.size(rank), one.error_sq(rank)) for rank in ranks])
    return [(sum(size for size, _ in chosen), sum(error for _, error in chosen)) for chosen in product(*options)]


def allocate(spectra: Sequence[Spectrum], budget: int) -> Allocation:
    return curve(spectra, [budget])[0]


def least_error(spectra: Sequence[Spectrum], budget: int) -> float:
    return min(error for size, error in every_choice(spectra) if size <= budget)


def close(value: float, spectra: Sequence[Spectrum]) -> float:
    """`value` and what sums of this size may lose in fp64."""
    return value + 1e-12 * sum(one.error_sq(0) for one in spectra)


def check(found: Allocation, spectra: Sequence[Spectrum]) -> None:
    """That size and error are those of the ranks, and the ranks possible."""
    pairs = list(zip(spectra, found.ranks, strict=True))
    assert all(one.dense_bytes is not None if rank is None else 0 <= rank <= len(one.squares) for one, rank in pairs)
    assert found.size == sum(one.size(rank) for one, rank in pairs)
    assert found.error_sq == pytest.approx(sum(one.error_sq(rank) for one, rank in pairs))


def largest_gain(spectra: Sequence[Spectrum]) -> float:
    return max(one.error_sq(0) for one in spectra)


@given(some_spectra(plain=True), st.integers(-1, 15))
def test_ranks_of_one_cost_are_optimal_at_every_budget(spectra: list[Spectrum], budget: int) -> None:
    found = allocate(spectra, budget)
    check(found, spectra)
    assert found.size <= max(budget, 0)
    assert found.error_sq <= close(least_error(spectra, max(budget, 0)), spectra)


@given(some_spectra(), st.integers(0, 120))
def test_no_choice_of_the_size_that_was_reached_is_better(spectra: list[Spectrum], budget: int) -> None:
    """The sizes of `allocate_error` are those that the greedy order passes through."""
    whole = sum(one.error_sq(0) for one in spectra)
    sizes = {allocate_error(spectra, share * whole).size for share in (0, 0.01, 0.1, 0.5)}
    for size in sizes:
        found = allocate(spectra, size)
        check(found, spectra)
        assert found.size <= size
        assert found.error_sq <= close(least_error(spectra, size), spectra)
    anything = allocate(spectra, budget)
    check(anything, spectra)
    assert anything.size <= budget
    assert anything.error_sq <= close(least_error(spectra, budget) + largest_gain(spectra), spectra)


@given(some_spectra(), st.floats(0, 1.5))
def test_an_error_is_reached_with_no_more_than_the_last_step_too_many(spectra: list[Spectrum], share: float) -> None:
    target = share * sum(one.error_sq(0) for one in spectra)
    found = allocate_error(spectra, target)
    check(found, spectra)
    lowest = min(error for _, error in every_choice(spectra))
    assert found.error_sq <= target or found.error_sq <= close(lowest, spectra)
    smaller = [error for size, error in every_choice(spectra) if size < found.size]
    assert all(close(error, spectra) >= found.error_sq for error in smaller)


def test_the_dense_delta_takes_the_place_of_many_ranks() -> None:
    """A (10, 10) delta with a flat spectrum: five ranks cost as much as the whole."""
    flat = spectrum([1.0] * 10, cost=20, dense=100)
    assert allocate([flat], 99).ranks == (0,)
    assert allocate([flat], 100) == Allocation((None,), 100, 0.0)
    steep = spectrum([100, 50, *[1e-3] * 8], cost=20, dense=100)
    assert allocate([steep], 99).ranks == (2,)
    assert allocate([steep], 1000).ranks == (None,)


def test_an_error_that_cannot_be_reached_takes_all() -> None:
    assert allocate_error([spectrum([2, 1], rest=5)], 0.1) == Allocation((2,), 2, 5.0)
    assert allocate_error([spectrum([2, 1], rest=5)], 8) == Allocation((0,), 0, 8.0)


BYTES = np.array([0, *WIDTHS])


def costs(
    *squares: float, fixed: int = 0, dense: bool = False, is_needed: bool = False, rest: float = 0.0
) -> WidthCosts:
    noise = np.append(1.0, 4.0 ** -np.array(WIDTHS))
    return WidthCosts(
        errors=noise[:, None] * np.array(squares)[None],
        nbytes=BYTES,
        rest=rest,
        fixed_bytes=fixed,
        dense_errors=np.append(np.inf, noise[1:] * sum(squares)) if dense else None,
        dense_bytes=3 * BYTES if dense else None,
        is_needed=is_needed,
    )


@pytest.mark.parametrize("budget", [0, 3, 9, 20, 60, 1000])
def test_no_choice_of_the_same_bytes_leaves_less(budget: int) -> None:
    given = [costs(8.0, 1.0), costs(3.0)]
    found = allocate_widths(given, budget)
    assert found.nbytes <= budget
    errors = np.concatenate([one.errors for one in given], axis=1)
    every = list(product(range(len(BYTES)), repeat=3))
    within = [
        sum(errors[at, rank] for rank, at in enumerate(one)) for one in every if sum(BYTES[list(one)]) <= found.nbytes
    ]
    assert found.error_sq == pytest.approx(min(within))


def test_the_smallest_that_meets_an_error() -> None:
    given = [costs(8.0, 1.0), costs(3.0)]
    found = allocate_widths_for(given, 0.01)
    assert found.error_sq <= 0.01
    assert allocate_widths(given, found.nbytes - 1).error_sq > 0.01


def test_a_module_may_be_stored_dense_or_not_at_all() -> None:
    dense = allocate_widths([costs(1.0, 1.0, 1.0, 1.0, dense=True)], 40)
    assert dense.widths == (None,)
    assert dense.dense[0] > 0
    assert dense.nbytes == 3 * dense.dense[0]
    nothing = allocate_widths([costs(1.0, fixed=100)], 50)
    assert (nothing.widths, nothing.nbytes, nothing.error_sq) == (((0,),), 0, 1.0)


def test_what_is_needed_is_never_left_out() -> None:
    found = allocate_widths([costs(1e-9, is_needed=True), costs(5.0)], 0)
    assert found.widths == ((2,), (0,))
