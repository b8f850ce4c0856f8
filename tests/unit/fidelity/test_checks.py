"""Which samples are held out, and errors at them as one value."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.fidelity.checks import Check, CheckKind, held_out, trial_errors
from lbm_lora.fidelity.output_errors import relative_error, typical_error


def test_one_in_four_is_held_out_up_to_sixteen() -> None:
    assert [len(held_out(count)) for count in (1, 3, 4, 7, 8, 16, 64, 65, 1000)] == [0, 0, 1, 1, 2, 4, 16, 16, 16]


def check(kind: CheckKind) -> Check:
    return Check(kind=kind, wanted=torch.ones(2))


def test_each_kind_of_shift_has_its_own_error() -> None:
    checks = [check("held"), check("larger"), check("held"), check("content"), check("larger")]
    found = trial_errors(checks, [0.01, 0.5, 0.04, 0.7, 0.02])
    assert found is not None
    assert (found.typical, found.shifted) == (pytest.approx(0.02), pytest.approx({"content": 0.7, "larger": 0.1}))
    low, high = found.shifted_within["larger"]
    assert (low < 0.02, high > 0.5, low * high) == (True, True, pytest.approx(0.1**2))
    assert found.low < 0.01
    assert found.high > 0.04
    assert found.low * found.high == pytest.approx(0.02**2)
    alone = trial_errors([check("held")], [0.02])
    assert alone is not None
    assert (alone.typical / alone.low, alone.shifted) == (pytest.approx(10 ** (3 * 1.28 / 20)), {})
    assert trial_errors([check("content")], [0.5]) is None


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


@given(weighted=WEIGHTED)
def test_the_typical_error_is_the_weighted_geometric_mean(weighted: list[tuple[float, float]]) -> None:
    errors, weights = zip(*weighted, strict=True)
    product = math.prod(error ** (weight / sum(weights)) for error, weight in weighted)
    assert typical_error(errors, weights) == pytest.approx(product, rel=1e-9)
