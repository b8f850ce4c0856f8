"""The scale that a user writes: a number, and numbers by layer."""

import pytest

from lbm_lora.adapter import LoraScale
from lbm_lora.errors import ConfigError
from lbm_lora.naming import ParamName

NAMES = [
    ParamName("down_blocks.0.attn1.to_q.weight"),
    ParamName("down_blocks.0.norm.bias"),
    ParamName("conv_in.weight"),
]


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        ("0.8", [0.8, 0.8, 0.8]),
        (-2.0, [-2, -2, -2]),
        ("0.8,down_blocks=0.5,attn1=0", [0, 0.5, 0.8]),
        ("down_blocks=0.5", [0.5, 0.5, 1]),
        ("1, denoiser.conv_in=2", [1, 1, 2]),
        ("attn1=0,down_blocks=0.5", [0.5, 0.5, 1]),
    ],
)
def test_the_last_pattern_that_matches_counts(text: str | float, scales: list[float]) -> None:
    assert list(LoraScale.parse(text).by_param(NAMES).values()) == scales


def test_its_text_is_what_a_user_writes() -> None:
    scale = LoraScale.parse("0.80,attn1=0.0")
    assert scale.text == "0.8,attn1=0"
    assert LoraScale.parse(scale.text) == scale


@pytest.mark.parametrize("text", ["x", "1,attn1", "attn1=", "1,=2", "", "nan", "1,attn1=inf", "1,2"])
def test_what_is_not_a_scale_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match="lora_scale"):
        LoraScale.parse(text)
