"""Shares of a file's bytes, against every possible choice."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lbm_lora.errors import InputError
from lbm_lora.factorize import Allocation, Spectrum, allocate, allocate_error, energy_rank, error_rank


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


def test_what_is_left_goes_to_what_fits() -> None:
    """The large delta is next in order, but its rank does not fit any more; a smaller one does, once."""
    large, small = spectrum([100, 90], cost=50), spectrum([1, 0.5, 0.1], cost=4)
    assert allocate([large, small], 58).ranks == (1, 2)


def test_the_dense_delta_takes_the_place_of_many_ranks() -> None:
    """A (10, 10) delta with a flat spectrum: five ranks cost as much as the whole."""
    flat = spectrum([1.0] * 10, cost=20, dense=100)
    assert allocate([flat], 99).ranks == (0,)
    assert allocate([flat], 100) == Allocation((None,), 100, 0.0)
    steep = spectrum([100, 50, *[1e-3] * 8], cost=20, dense=100)
    assert allocate([steep], 99).ranks == (2,)
    assert allocate([steep], 1000).ranks == (None,)


def test_small_errors_keep_their_digits() -> None:
    """From 1 down to 1e-20: as energy minus kept energy it would be lost below 1e-16."""
    falling = spectrum([10.0**-i for i in range(21)])
    assert falling.error_sq(20) == 1e-20
    assert allocate_error([falling], 1e-19).ranks == (20,)


def test_an_error_that_cannot_be_reached_takes_all() -> None:
    assert allocate_error([spectrum([2, 1], rest=5)], 0.1) == Allocation((2,), 2, 5.0)
    assert allocate_error([spectrum([2, 1], rest=5)], 8) == Allocation((0,), 0, 8.0)


@pytest.mark.parametrize(
    ("share", "rank"), [(0, 0), (0.5, 1), (0.79, 1), (0.81, 2), (0.95, 2), (0.96, 3), (0.97, None), (1, None)]
)
def test_the_rank_of_an_energy(share: float, rank: int | None) -> None:
    assert energy_rank(spectrum([80, 15, 1], rest=4), share) == rank


@given(some_spectra(plain=True), st.floats(0, 1))
def test_an_error_rank_is_the_smallest(spectra: list[Spectrum], error: float) -> None:
    one = spectra[0]
    found = error_rank(one, error)
    limit = error**2 * one.error_sq(0)
    good = [rank for rank in range(len(one.squares) + 1) if one.error_sq(rank) <= limit]
    assert found == (good[0] if good else None)
    assume(one.error_sq(0) > 0)
    whole = spectrum(list(one.squares))
    assert energy_rank(whole, 1) == np.count_nonzero(whole.squares)


@pytest.mark.parametrize("values", [{"cost": 0}, {"fixed": -1}, {"dense": 0}])
def test_bytes_that_cannot_be_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        spectrum([1.0], **values)
