import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lbm_lora.errors import InputError
from lbm_lora.factorize import (
    WIDTHS,
    Counts,
    Factors,
    Grid,
    Moment,
    counts_of,
    largest,
    nearest,
    relative_noise,
    vector_counts,
    vector_of,
)


def rows(count: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), widths=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=4))
def test_factors_are_found_again_from_their_values(seed: int, widths: list[int]) -> None:
    up, unit = nearest(rows(len(widths), 7, seed), widths)
    down, _ = nearest(rows(len(widths), 11, seed + 1), widths)
    counts = Counts(up.mT, down, Grid(tuple(widths), unit))
    again = counts_of(counts.factors(), counts.grid)
    assert torch.equal(again.up, counts.up)
    assert torch.equal(again.down, counts.down)


@pytest.mark.parametrize("width", WIDTHS)
def test_counts_stay_within_their_width(width: int) -> None:
    counts, unit = nearest(rows(3, 300), [width] * 3)
    assert int(counts.abs().max()) <= largest(width)
    error = (rows(3, 300) - counts.float() * unit[:, None]).square().sum(1) / rows(3, 300).square().sum(1)
    assert (error < 1.5 * 4.0 ** -(width - 2)).all()


def test_noise_is_that_of_rounding() -> None:
    values, variances = rows(4, 160), torch.rand(160)
    noise = relative_noise(values, variances)
    assert noise.shape == (len(WIDTHS), 4)
    for index, width in enumerate(WIDTHS):
        counts, unit = nearest(values, [width] * 4, variances=variances)
        lost = (values - counts.float() * unit[:, None]).square() @ variances
        exact = lost / (values.square() @ variances)
        torch.testing.assert_close(
            torch.from_numpy(noise[index]).float(), exact, rtol=1e-4 if width < 8 else 0.3, atol=0
        )


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("width", [3, 6])
def test_errors_that_are_passed_on_cost_less(repeat: int, width: int) -> None:
    samples = rows(200, 80) @ rows(80, 80, seed=1)
    moment = Moment(dense=samples.mT @ samples / 200, repeat=repeat)
    values, root = rows(5, 80 * repeat), moment.root(1e-3)
    alone, unit = nearest(values, [width] * 5)
    passed, same = nearest(values, [width] * 5, root=root)
    assert torch.equal(unit, same)
    cost = [moment.quadratic(values - counts.float() * unit[:, None]) for counts in (alone, passed)]
    assert cost[1] < 0.7 * cost[0]


def test_vectors_are_found_again() -> None:
    counts, unit = nearest(rows(1, 9), [5])
    grid = Grid((5,), unit)
    assert torch.equal(vector_counts(vector_of(counts[0], grid), grid), counts[0])
    with pytest.raises(InputError, match="not on the grid"):
        vector_counts(rows(1, 9)[0], grid)


def test_factors_off_the_grid_are_refused() -> None:
    grid = Grid((4, 4), torch.ones(2))
    with pytest.raises(InputError, match="not on the grid"):
        counts_of(Factors(rows(3, 2), rows(2, 3)), grid)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        nearest(torch.tensor([[1.0, torch.inf]]), [4])
