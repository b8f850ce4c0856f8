"""The relative error of one output, and the typical one of many."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.fidelity.output_errors import FLOOR, relative_error, squared_errors, typical_error

ERRORS = st.floats(1e-6, 1e3)
WEIGHTS = st.floats(0.01, 1.0)
WEIGHTED = st.lists(st.tuples(ERRORS, WEIGHTS), min_size=1, max_size=8)


def test_relative_error() -> None:
    wanted = torch.tensor([3.0, 4.0])
    assert relative_error(wanted, wanted) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), wanted) == pytest.approx(0.1)
    assert relative_error(wanted, torch.zeros(2)) == math.inf
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0


def test_values_whose_squares_leave_the_range_of_fp32_have_an_error() -> None:
    wanted = torch.full((4,), 1e30)
    assert relative_error(1.5 * wanted, wanted) == pytest.approx(0.5)
    assert relative_error(torch.full((4,), 3e-30), torch.full((4,), 2e-30)) == pytest.approx(0.5)


def test_each_sample_has_its_own_squared_error() -> None:
    draw = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(3, 2, 4, 5, generator=draw) for _ in range(2))
    errors = squared_errors(found, wanted)
    for error, one, other in zip(errors, found, wanted, strict=True):
        assert float(error) == pytest.approx(relative_error(one, other) ** 2, rel=1e-5)


def test_squared_errors_teach() -> None:
    wanted = torch.full((1, 1, 2, 2), 2.0)
    found = torch.full((1, 1, 2, 2), 3.0, requires_grad=True)
    squared_errors(found, wanted).sum().backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, torch.full((1, 1, 2, 2), 2 * 1.0 / 16))


def test_an_output_that_is_zero_as_it_should_be_has_no_error() -> None:
    nothing = torch.zeros(1, 1, 2, 2)
    assert squared_errors(nothing, nothing).tolist() == [0.0]
    assert squared_errors(nothing + 1, nothing).tolist() == [math.inf]


@given(weighted=WEIGHTED)
def test_the_typical_error_is_the_weighted_geometric_mean(weighted: list[tuple[float, float]]) -> None:
    errors, weights = zip(*weighted, strict=True)
    product = math.prod(error ** (weight / sum(weights)) for error, weight in weighted)
    assert typical_error(errors, weights) == pytest.approx(product, rel=1e-9)


@given(weighted=WEIGHTED, factor=st.floats(0.1, 10.0))
def test_weights_need_not_add_up_to_one(weighted: list[tuple[float, float]], factor: float) -> None:
    errors, weights = zip(*weighted, strict=True)
    scaled = typical_error(errors, (factor * weight for weight in weights))
    assert scaled == pytest.approx(typical_error(errors, weights), rel=1e-9)


def test_an_output_without_error_counts_as_the_floor() -> None:
    assert typical_error([0.0], [1.0]) == pytest.approx(FLOOR)
    assert typical_error([0.0, 1e-3], [0.5, 0.5]) == pytest.approx(1e-6)  # sqrt(1e-9 * 1e-3)


def test_every_error_needs_a_weight() -> None:
    with pytest.raises(ValueError, match="shorter"):
        typical_error([0.1, 0.2], [1.0])
