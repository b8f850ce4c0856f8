"""Errors of a run: the value. How they are summarised: fidelity/test_checks.py."""

from lbm_lora.ranks import TrialErrors


def test_shifted_inputs_are_optional() -> None:
    assert TrialErrors(typical=0.1, low=0.05, high=0.2).shifted is None
