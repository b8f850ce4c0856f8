"""The SVD of a sum of products, against that of the matrix."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.factorize import (
    Factors,
    Moment,
    Weights,
    concatenated,
    exact_factors,
    exact_svd,
    product_svd,
    weighted_product_svd,
    weighted_svd,
)

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
