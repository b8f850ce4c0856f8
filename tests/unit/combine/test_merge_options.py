"""The rule that the options of a merge select, and options that make no sense together."""

from pathlib import Path
from typing import Any

import pytest

from lbm_lora.combine import merge_rule
from lbm_lora.configs.merge import MergeConfig
from lbm_lora.errors import ConfigError
from lbm_lora.factorize import FixedRank
from lbm_lora.ranks import FixedRanks


def config(**options: Any) -> MergeConfig:
    return MergeConfig(lora_path=(Path("a"), Path("b")), save_to=Path("m.safetensors"), **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"exact": True, "rank": 4}, "exact and rank both choose the ranks"),
        ({"rank": 4, "max_size": "1MB"}, "rank and max_size both choose the ranks"),
        ({"exact": True, "method": "ties"}, "exact keeps the sum, method ties changes it"),
        ({"conv_rank": 4}, "conv_rank needs rank"),
        ({"calibration": Path("s")}, "calibration weighs what is lost, but nothing is lost: add rank"),
        ({"calibration": Path("s"), "max_error": 0.1}, "use max_output_error"),
        ({"max_output_error": 0.1}, "max_output_error needs the denoiser's output: add calibration"),
        ({"density": 0.3}, "density is for method ties, dare and knots, not for sum"),
        ({"density": 0.0, "method": "ties"}, "density must be above 0 and at most 1, got 0"),
        ({"images": "photos"}, "images fits the scales to outputs: add base_model_path"),
        ({"tuned_model_path": Path("t")}, "tuned_model_path is for fitting the scales: add images"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        merge_rule(config(**options))


def test_the_rule_that_options_select() -> None:
    assert merge_rule(config()) is None
    assert merge_rule(config(exact=True)) is None
    assert merge_rule(config(rank=8)) == FixedRanks(ranks=(FixedRank(linear=8, conv=4),))
    assert merge_rule(config(rank=8, conv_rank=8)) == FixedRanks(ranks=(FixedRank(linear=8, conv=8),))
    found = [merge_rule(config(**options)) for options in ({"max_size": "1MB"}, {"max_error": 0.1})]
    assert [rule.option for rule in found if rule] == ["max_size", "max_error"]
    with_output = merge_rule(config(max_output_error=0.1, calibration=Path("s")))
    assert with_output is not None
    assert with_output.option == "max_output_error"
