"""The two factors as a file stores them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.errors import InputError
from lbm_lora.factorize import Factors, factorize, rounded, truncated_svd
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


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("rank", [1, 8, 9999])
def test_a_zero_delta_gives_zero(rank: int, dtype: torch.dtype) -> None:
    factors = factorize(torch.zeros(20, 30), rank, dtype, seed=0)
    assert factors.rank == min(rank, 20)
    assert not factors.product().any()
    assert torch.isfinite(factors.up).all()


@pytest.mark.parametrize("scale", [1e-6, 1e-12])
@pytest.mark.parametrize("rank", [8, 63])
def test_values_that_fp16_flushes_do_no_harm(rank: int, scale: float) -> None:
    """fp16 ends at 6e-8: the faint rows of `down` become zero, and the rest is as good as rounding each factor."""
    matrix = matrix_with(64, 96, SPECTRA["exponential"]) * scale
    factors = factorize(matrix, rank, torch.float16, seed=0)
    assert torch.isfinite(factors.up).all()
    assert relative_error(matrix, factors) <= 1.001 * relative_error(matrix, naive(matrix, rank, torch.float16)) + 1e-6


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (5, 5)])
def test_a_full_rank_product_is_the_matrix_itself(shape: tuple[int, int]) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 0.5"])
    found = factorize(matrix, 99, torch.float32, seed=0)
    dense = found.dense()
    assert dense is not None
    assert torch.equal(dense, matrix)
    found.product().zero_()  # it shares no memory with the factors
    assert torch.equal(found.product(), matrix)
    assert factorize(matrix, 2, torch.float32, seed=0).dense() is None


@pytest.mark.parametrize("rank", [2, 9999])
def test_values_that_leave_the_range_are_refused(rank: int) -> None:
    matrix = matrix_with(8, 12, SPECTRA["power 1"]) * 1e12
    with pytest.raises(InputError, match=r"^values up to [0-9e+.]+ exceed the range of float16\. Store them in bf16: "):
        factorize(matrix, rank, torch.float16, seed=0)
    assert relative_error(matrix, factorize(matrix, 9999, torch.bfloat16, seed=0)) < 4e-3


def test_rounding_names_the_largest_value() -> None:
    assert torch.equal(rounded(torch.tensor([1.0, -65504.0]), torch.float16), torch.tensor([1.0, -65504.0]).half())
    with pytest.raises(InputError) as caught:
        rounded(torch.tensor([1.0, -1e5]), torch.float16)
    assert str(caught.value) == (
        "values up to 100000 exceed the range of float16. Store them in bf16: save_precision bf16."
    )
    with pytest.raises(InputError) as caught:
        rounded(torch.tensor([3.4e38]), torch.bfloat16)
    assert str(caught.value) == (
        "values up to 3.4e+38 exceed the range of bfloat16. Is the checkpoint damaged, or its training diverged?"
    )
