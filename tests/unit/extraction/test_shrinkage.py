"""Statistics shrunk until a LoRA is not worse than plain SVD."""

from lbm_lora.extraction.shrinkage import Shrinkage, is_safe
from lbm_lora.ranks import TrialErrors


def errors(typical: float, shifted: float | None) -> TrialErrors:
    kinds = {} if shifted is None else {"content": shifted / 2, "smaller": shifted * 2}
    return TrialErrors(typical=typical, low=typical / 2, high=2 * typical, shifted=kinds)


def test_both_errors_must_not_be_above_those_of_plain_svd() -> None:
    plain = errors(0.1, 0.2)
    assert is_safe(errors(0.1, 0.2), plain)
    assert is_safe(errors(0.05, None), plain)
    assert not is_safe(errors(0.05, 0.21), plain)
    assert not is_safe(errors(0.11, 0.05), plain)


def test_a_file_records_what_was_compared() -> None:
    found = Shrinkage(kind="shrunk", ridge=1.0, errors=errors(0.1, 0.2), plain=errors(0.2, 0.3), base=errors(1, 1))
    assert found.facts() == {"plain_output_error": 0.2, "plain_shifted_output_error": 0.3, "ridge": 1.0}
    assert not found.is_useless
    alone = Shrinkage(kind="given", errors=errors(0.1, None), plain=errors(0.2, None), base=errors(0.05, None))
    assert alone.facts() == {"plain_output_error": 0.2}
    assert alone.is_useless


def test_a_lora_that_was_not_compared_with_the_base_is_not_called_useless() -> None:
    assert not Shrinkage(kind="given", errors=errors(1.0, None), plain=errors(1.0, None), base=None).is_useless
