"""The two factors as a file stores them, in 8 bits too, and the SVD of their sums."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.errors import InputError
from lbm_lora.factorize import (
    Factors,
    Moment,
    Weights,
    concatenated,
    exact_factors,
    exact_svd,
    factorize,
    grid_noise,
    product_svd,
    quantize,
    stored_factors,
    truncated_svd,
    weighted_product_svd,
    weighted_svd,
)
from lbm_lora.factorize.factors import on_grid
from spectra import SPECTRA, WORST, bound_of, error_of, matrix_with

HALVES = [torch.bfloat16, torch.float16]


def relative_error(matrix: Tensor, factors: Factors) -> float:
    return error_of(matrix, factors.up, factors.down) / float(matrix.double().norm())


def naive(matrix: Tensor, rank: int, dtype: torch.dtype) -> Factors:
    """U sqrt(S) and sqrt(S) V^T, each rounded for itself."""
    svd = truncated_svd(matrix, rank, seed=0)
    root = svd.values.sqrt()
    return Factors((svd.left * root).to(dtype), (root[:, None] * svd.right).to(dtype))


@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("shape", [(80, 48), (200, 260)])
def test_fp32_factors_are_optimal(shape: tuple[int, int], name: str) -> None:
    matrix = matrix_with(*shape, SPECTRA[name])
    factors = factorize(matrix, 24, torch.float32, seed=0)
    assert (factors.rank, factors.up.shape, factors.down.shape) == (24, (shape[0], 24), (24, shape[1]))
    assert error_of(matrix, factors.up, factors.down) <= bound_of(matrix, 24)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("shape", "rank", "share"), [((64, 96), 8, 1.0), ((48, 48), 40, 0.7)])
@pytest.mark.parametrize("name", ["power 2", "flat"])
def test_the_fit_of_up_takes_back_some_of_what_rounding_cost(
    name: str, shape: tuple[int, int], rank: int, share: float, dtype: torch.dtype
) -> None:
    matrix = matrix_with(*shape, SPECTRA[name])
    fitted, plain = factorize(matrix, rank, dtype, seed=0), naive(matrix, rank, dtype)
    best = error_of(matrix, *_exact(matrix, rank))
    excess = error_of(matrix, fitted.up, fitted.down) ** 2 - best**2
    assert excess < share * (error_of(matrix, plain.up, plain.down) ** 2 - best**2)


def _exact(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", WORST)
def test_rounded_factors_are_near_the_optimum(name: str, dtype: torch.dtype) -> None:
    matrix = matrix_with(48, 64, SPECTRA[name])
    factors = factorize(matrix, 24, dtype, seed=0)
    assert (factors.up.dtype, factors.down.dtype) == (dtype, dtype)
    rounding = 2.0 ** (-8 if dtype == torch.bfloat16 else -11)
    assert error_of(matrix, factors.up, factors.down) <= bound_of(matrix, 24) + rounding * float(matrix.norm())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.sampled_from([torch.float32, *HALVES]))
def test_full_rank_is_exact_where_the_dtype_can_hold_the_delta(
    rows: int, columns: int, more: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    matrix = torch.randn(rows, columns, generator=generator).to(dtype).float()
    factors = factorize(matrix, min(rows, columns) + more, dtype, seed=0)
    assert factors.rank == min(rows, columns)
    assert (factors.up.dtype, factors.down.dtype) == (dtype, dtype)
    assert torch.equal(factors.product(), matrix)


@pytest.mark.parametrize("scale", [1e-6, 1e-12])
@pytest.mark.parametrize("rank", [8, 63])
def test_values_that_fp16_flushes_do_no_harm(rank: int, scale: float) -> None:
    """fp16 ends at 6e-8: the faint rows of `down` become zero, and the rest is as good as rounding each factor."""
    matrix = matrix_with(64, 96, SPECTRA["exponential"]) * scale
    factors = factorize(matrix, rank, torch.float16, seed=0)
    assert torch.isfinite(factors.up).all()
    assert relative_error(matrix, factors) <= 1.001 * relative_error(matrix, naive(matrix, rank, torch.float16)) + 1e-6


@pytest.mark.parametrize("rank", [2, 9999])
def test_values_that_leave_the_range_are_refused(rank: int) -> None:
    matrix = matrix_with(8, 12, SPECTRA["power 1"]) * 1e12
    with pytest.raises(InputError, match=r"^values up to [0-9e+.]+ exceed the range of float16\. Store them in bf16: "):
        factorize(matrix, rank, torch.float16, seed=0)
    assert relative_error(matrix, factorize(matrix, 9999, torch.bfloat16, seed=0)) < 4e-3


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
    again = quantize(first.factors().up, first.factors().down)
    assert torch.equal(first.up, again.up)
    assert torch.equal(first.down, again.down)
    assert torch.equal(first.unit, again.unit)


def test_rows_of_zeros_stay_zeros() -> None:
    up, down = pair(5, 3, 6, 0, 1.0, 1.0)
    up[:, 0], down[1] = 0, 0
    found = quantize(up, down)
    assert torch.isfinite(found.unit).all()
    product = found.factors().product()
    torch.testing.assert_close(product, up[:, 2:] @ down[2:], rtol=0, atol=0.1)
    again = quantize(found.factors().up, found.factors().down)
    assert all(
        torch.equal(one, other)
        for one, other in ((again.up, found.up), (again.down, found.down), (again.unit, found.unit))
    )


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


SIDES = st.integers(1, 24)


def terms_of(rows: int, columns: int, ranks: list[int]) -> list[Factors]:
    generator = torch.Generator().manual_seed(rows * 31 + columns)
    return [
        Factors(torch.randn(rows, r, generator=generator), torch.randn(r, columns, generator=generator)) for r in ranks
    ]


@given(rows=SIDES, columns=SIDES, ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_it_is_the_svd_of_the_sum(rows: int, columns: int, ranks: list[int]) -> None:
    terms = terms_of(rows, columns, ranks)
    matrix = sum((term.product() for term in terms), start=torch.zeros(rows, columns))
    found = product_svd(concatenated(terms))
    count = min(sum(ranks), rows, columns)
    assert found.left.shape == (rows, count)
    assert found.right.shape == (count, columns)
    torch.testing.assert_close(found.left * found.values @ found.right, matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values, exact_svd(matrix, count).values, rtol=1e-4, atol=1e-4)


def test_in_a_weighted_norm_the_product_has_the_svd_of_its_matrix(rand: Callable[..., Tensor]) -> None:
    def moment(size: int, repeat: int = 1) -> Moment:
        rows = rand(2 * size, size)
        return Moment(dense=rows.mT @ rows, repeat=repeat)

    factors = Factors(rand(30, 5), rand(5, 8 * 9))
    whitening = Weights(inputs=moment(8, repeat=9), outputs=moment(30), scale=2.0).whitening()
    found, wanted = weighted_product_svd(factors, whitening), weighted_svd(factors.product(), 5, whitening, seed=0)
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-4, atol=1e-4)
    for rank in (2, 5):
        one, other = ((svd.left * svd.values) @ svd.right for svd in (found.first(rank), wanted.first(rank)))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert found.rest == 0


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_a_matrix_is_exact_as_factors(rand: Callable[..., Tensor], shape: tuple[int, int]) -> None:
    matrix = rand(*shape)
    factors = exact_factors(matrix.bfloat16())
    assert (factors.rank, factors.up.dtype) == (min(shape), torch.float32)
    assert torch.equal(factors.product(), matrix.bfloat16().float())
