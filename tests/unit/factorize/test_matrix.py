"""Shapes and ranks of a weight's matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from lbm_lora.factorize import FixedRank, down_shape, matrix_shape, rank_bound, to_matrix, up_shape

LINEAR = st.tuples(st.integers(1, 9), st.integers(1, 9))
CONV = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))


@given(LINEAR | CONV)
def test_to_matrix_and_back(shape: tuple[int, ...]) -> None:
    weight = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    matrix = to_matrix(weight)
    assert tuple(matrix.shape) == matrix_shape(shape)
    assert torch.equal(matrix.reshape(shape), weight)
    assert all(torch.equal(matrix[row], weight[row].flatten()) for row in range(shape[0]))
    assert rank_bound(shape) == min(matrix.shape)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 3, 1, 1), (5, 2, 1, 3)])
def test_a_product_of_factors_is_two_convs_in_a_row(shape: tuple[int, ...], stride: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, shape[1], 8, 7, generator=generator, dtype=torch.float64)
    up = torch.randn(up_shape(shape, 2), generator=generator, dtype=torch.float64)
    down = torch.randn(down_shape(shape, 2), generator=generator, dtype=torch.float64)
    weight = (to_matrix(up) @ to_matrix(down)).reshape(shape)
    once = functional.conv2d(images, weight, stride=stride, padding=padding)
    twice = functional.conv2d(functional.conv2d(images, down, stride=stride, padding=padding), up)
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((64, 64), 32), ((8, 64), 8), ((64, 64, 3, 3), 16), ((4, 320, 3, 3), 4), ((320, 1, 3, 3), 9), ((64, 3, 1, 1), 3)],
)
def test_the_documented_ranks(shape: tuple[int, ...], rank: int) -> None:
    assert FixedRank().rank_of(shape) == rank


@pytest.mark.parametrize(
    ("linear", "conv", "expected"),
    [(32, None, 16), (16, None, 8), (3, None, 2), (1, None, 1), (9999, None, 9999), (16, 16, 16), (9999, 4, 4)],
)
def test_a_conv_rank_is_half_of_the_rank_unless_it_is_given(linear: int, conv: int | None, expected: int) -> None:
    assert FixedRank.of(linear, conv) == FixedRank(linear=linear, conv=expected)
