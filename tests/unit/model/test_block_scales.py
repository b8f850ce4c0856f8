"""Scales by block as diffusers has them: each layer gets the number that diffusers itself would give it."""

from typing import Any

import pytest
import torch
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales  # pyright: ignore[reportPrivateUsage]
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from lbm_lora.errors import ConfigError
from lbm_lora.model.loaded_loras import scale_of_blocks
from lbm_lora.naming import ParamName
from standins import TINY, lbm_unet_config

WITH_ATTENTION = ("down_blocks.1.", "down_blocks.2.", "mid_block.", "up_blocks.0.", "up_blocks.1.")


@pytest.mark.parametrize(
    "scales",
    [
        {"down": 0.5},
        {"mid": 0.25},
        {"mid": [0.25]},
        {"down": 0.5, "mid": 2, "up": {"block_0": -1.0}},
        {"up": {"block_0": 0.5, "block_1": [0.1, 0.2, 0.3]}, "down": {"block_2": [0.0, 4.0]}},
    ],
)
def test_each_layer_is_scaled_as_by_diffusers(scales: dict[str, Any]) -> None:
    """Compared on the blocks with attention: diffusers has no scale for the others."""
    config = {key: value for key, value in lbm_unet_config(TINY).items() if not key.startswith("_")}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    names = [ParamName(name) for name in unet.state_dict() if name.startswith(WITH_ATTENTION)]
    expanded: Any = _maybe_expand_lora_scales(unet, [scales])[0]
    found = scale_of_blocks(scales).by_param(names)
    for name in names:
        parts = name.split(".")
        block = "mid_block.attentions.0" if parts[0] == "mid_block" else ".".join([*parts[:2], "attentions", parts[3]])
        assert found[name] == expanded[block], name
    assert set(found.values()) > {1.0} or len(set(found.values())) > 1


def test_the_key_of_the_unet_is_taken_off() -> None:
    assert scale_of_blocks({"unet": {"down": 0.5}}) == scale_of_blocks({"down": 0.5})
    assert scale_of_blocks({"unet": 0.5}).plain == 0.5


@pytest.mark.parametrize(
    ("scales", "text"),
    [
        ({"dwon": 0.5}, "adapter_weights: 'dwon' is not a block."),
        ({"down": {"blocks_1": 1}}, "adapter_weights: 'blocks_1' is not a block."),
        ({"down": "0.5"}, "adapter_weights: '0.5' is not a number."),
        ({"down": {"block_1": [None]}}, "adapter_weights: None is not a number."),
    ],
)
def test_what_is_not_a_scale_is_said_with_the_form(scales: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scale_of_blocks(scales)
    assert str(caught.value).startswith(f"{text} Give ")
