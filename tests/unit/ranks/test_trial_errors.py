"""Errors of a run: the value. How they are summarised: fidelity/test_checks.py."""

import pytest

from lbm_lora.ranks import TrialErrors


def test_shifted_inputs_are_optional() -> None:
    assert TrialErrors(typical=0.1, low=0.05, high=0.2).typical_shifted is None


def test_kinds_of_shift_count_equally() -> None:
    found = TrialErrors(typical=0.1, low=0.05, high=0.2, shifted={"content": 0.4, "larger": 0.1})
    assert found.typical_shifted == pytest.approx(0.2)
