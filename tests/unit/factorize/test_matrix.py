"""The matrix view of linear and conv weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from lbm_lora.factorize import down_shape, has_matrix_view, matrix_shape, rank_bound, to_matrix, up_shape

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
    ("shape", "bound"),
    [((1280, 640), 640), ((4, 320, 3, 3), 4), ((320, 4, 3, 3), 36), ((320, 320, 3, 3), 320), ((7, 1, 1, 1), 1)],
)
def test_the_rank_of_a_conv_is_bound_by_its_whole_kernel(shape: tuple[int, ...], bound: int) -> None:
    assert rank_bound(shape) == bound


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3), True),
        ((2, 3, 1, 1), True),
        ((), False),
        ((3,), False),
        ((2, 3, 3), False),
        ((2, 3, 3, 3, 3), False),
        ((0, 3), False),
        ((2, 3, 0, 3), False),
    ],
)
def test_what_has_a_matrix_view(shape: tuple[int, ...], expected: bool) -> None:
    assert has_matrix_view(shape) is expected
