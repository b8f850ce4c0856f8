"""Factors in 8 bits: exact in fp32, stable under rounding again, and as near as 8 bits allow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.errors import InputError
from lbm_lora.factorize import Factors, factorize, grid_noise, quantize, stored_factors
from lbm_lora.factorize.eight_bit import LARGEST, on_grid
from spectra import SPECTRA, matrix_with

SCALES = st.sampled_from([1e-30, 1e-12, 1e-4, 1.0, 300.0, 1e12])


def pair(rows: int, rank: int, columns: int, seed: int, up_scale: float, down_scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    return up * up_scale, down * down_scale


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99), SCALES, SCALES)
def test_rounding_again_changes_nothing(
    rows: int, rank: int, columns: int, seed: int, up_scale: float, down_scale: float
) -> None:
    first = quantize(*pair(rows, rank, columns, seed, up_scale, down_scale))
    again = quantize(*first.factors())
    assert torch.equal(first.up, again.up)
    assert torch.equal(first.down, again.down)
    assert torch.equal(first.unit, again.unit)


@given(st.integers(0, 99), SCALES)
def test_each_value_is_within_half_a_unit(seed: int, scale: float) -> None:
    up, down = pair(7, 4, 11, seed, 1.0, scale)
    found = quantize(up, down)
    largest = down.abs().amax(dim=1, keepdim=True)
    rows = found.down.float() * largest / LARGEST
    assert ((rows - down).abs() <= 0.505 * largest / LARGEST).all()  # units keep 16 bits of their own
    assert (found.down.abs().amax(dim=1) == LARGEST).all()
    assert (found.up.abs().amax(dim=0) == LARGEST).all()


def test_rows_of_zeros_stay_zeros() -> None:
    up, down = pair(5, 3, 6, 0, 1.0, 1.0)
    up[:, 0], down[1] = 0, 0
    found = quantize(up, down)
    assert torch.isfinite(found.unit).all()
    product = Factors(*found.factors()).product()
    torch.testing.assert_close(product, up[:, 2:] @ down[2:], rtol=0, atol=0.1)
    again = quantize(*found.factors())
    assert all(
        torch.equal(one, other)
        for one, other in ((again.up, found.up), (again.down, found.down), (again.unit, found.unit))
    )


def test_values_that_are_not_finite_are_refused() -> None:
    up, down = pair(5, 3, 6, 0, 1.0, 1.0)
    down[0, 0] = float("inf")
    with pytest.raises(InputError, match="not finite"):
        quantize(up, down)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (260, 300)])
def test_rank_and_rounding_of_a_factorization(shape: tuple[int, int]) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 1"])
    exact, found = (factorize(matrix, 8, dtype, seed=0) for dtype in (torch.float32, torch.int8))
    best, error = (float((matrix - factors.product()).norm()) for factors in (exact, found))
    assert best < error < 1.02 * best
    again = stored_factors(found.up, found.down, torch.int8)
    assert torch.equal(again.up, found.up)
    assert torch.equal(again.down, found.down)


def test_the_expected_noise_is_the_measured_one() -> None:
    rows = torch.randn(6, 20_000, generator=torch.Generator().manual_seed(0))
    measured = (on_grid(rows) - rows).double().square().mean(dim=1)
    torch.testing.assert_close(measured, grid_noise(rows, dim=1), rtol=0.05, atol=0)
