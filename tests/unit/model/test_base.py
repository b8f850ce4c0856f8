"""The rule that makes a base, tensor by tensor, as a plan."""

from collections import Counter
from typing import Any

import pytest
import torch

from lbm_lora.checkpoint import TensorSpec
from lbm_lora.errors import CheckpointError
from lbm_lora.model.base import BaseItem, apply_item, base_unet_config, plan_base
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import LBM_UNET
from lbm_lora.model.names import denoiser_shapes
from standins import MINI, TINY, backbone_unet_config, lbm_unet_config, unet_shapes, vae_config, vae_shapes

Specs = dict[str, TensorSpec]
TO_K = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def specs_of(shapes: dict[str, tuple[int, ...]]) -> Specs:
    return {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}


def config_of(**unet: Any) -> LBMConfig:
    channels = unet.get("in_channels", 4)
    return LBMConfig(unet_input_channels=channels, unet=lbm_unet_config(TINY) | unet, vae=vae_config())


@pytest.fixture
def unet() -> Specs:
    return specs_of(unet_shapes(backbone_unet_config(TINY)))


@pytest.fixture
def vae() -> Specs:
    return specs_of(vae_shapes(vae_config()))


def test_the_mini_plan_is_the_documented_one(vae: Specs) -> None:
    unet = specs_of(unet_shapes(backbone_unet_config(MINI)))
    config = LBMConfig(unet=lbm_unet_config(MINI), vae=vae_config())
    plan = plan_base(unet, vae, config, where="backbone")
    assert Counter(item.action for item in plan) == {"copied": 1536 + 248, "cropped": 140, "dropped": 4, "added": 1}
    kept = [item.key for item in plan if item.to_shape is not None]
    assert sum(key.startswith("denoiser.") for key in kept) == 1676
    for item in plan:
        if item.action == "cropped":
            assert ".attn2.to_" in item.source
            assert item.source.endswith(("to_k.weight", "to_v.weight"))
        if item.action == "dropped":
            assert item.source.startswith("add_embedding.linear_")
            assert item.to_shape is None


def test_every_item_says_what_it_does(unet: Specs, vae: Specs) -> None:
    plan = {item.source: item for item in plan_base(unet, vae, config_of(), where="backbone")}
    assert plan[TO_K] == BaseItem(
        key=f"denoiser.{TO_K}", source=TO_K, action="cropped", from_shape=(64, 96), to_shape=(64, 64),
        reason="the first 64 of 96 input columns",
    )  # fmt: skip
    assert plan["add_embedding.linear_1.weight"].reason == "LBM has no added text and time embedding"
    assert plan[""].key == "num_iterations"
    assert plan["quant_conv.weight"].key == "vae.vae_model.quant_conv.weight"


def test_more_inputs_are_padded(unet: Specs, vae: Specs) -> None:
    plan = {item.source: item for item in plan_base(unet, vae, config_of(in_channels=12), where="backbone")}
    item = plan["conv_in.weight"]
    assert (item.action, item.from_shape, item.to_shape) == ("padded", (16, 4, 3, 3), (16, 12, 3, 3))
    assert item.reason == "zeros for 8 more inputs"


def test_what_the_rule_does_not_explain_is_an_error(unet: Specs, vae: Specs) -> None:
    unet["mid_block.attentions.0.proj_in.weight"] = TensorSpec(torch.float32, (64, 64, 1, 1))
    unet[TO_K] = TensorSpec(torch.float32, (32, 96))
    unet["controlnet.weight"] = TensorSpec(torch.float32, (1,))
    del vae["quant_conv.bias"]
    with pytest.raises(CheckpointError) as caught:
        plan_base(unet, vae, config_of(), where="backbone x")
    assert str(caught.value) == (
        "backbone x: 4 tensors do not fit the rule that makes a base: "
        "denoiser.mid_block.attentions.0.proj_in.weight is (64, 64, 1, 1), but (64, 64) in LBM, "
        f"denoiser.{TO_K} is (32, 96), but (64, 64) in LBM, "
        "vae.vae_model.quant_conv.bias is missing, "
        "denoiser.controlnet.weight (1,) has no place in LBM. "
        "Does the configuration belong to this backbone?"
    )


def test_the_vae_is_never_resized(unet: Specs, vae: Specs) -> None:
    vae["decoder.conv_in.weight"] = TensorSpec(torch.float32, (64, 16, 3, 3))
    with pytest.raises(CheckpointError, match=r"decoder.conv_in.weight is \(64, 16, 3, 3\), but"):
        plan_base(unet, vae, config_of(), where="backbone")


def item(have: tuple[int, ...], want: tuple[int, ...] | None) -> BaseItem:
    return BaseItem(key="k", source="s", action="copied", from_shape=have, to_shape=want, reason="")


def test_cropping_keeps_the_first_columns() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert apply_item(item((2, 3), (2, 2)), tensor).tolist() == [[0, 1], [3, 4]]


def test_padding_adds_zeros_behind() -> None:
    tensor = torch.ones(2, 1, 1, 1)
    assert apply_item(item((2, 1, 1, 1), (2, 3, 1, 1)), tensor)[:, :, 0, 0].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_class_embedding_may_change_on_every_axis() -> None:
    assert apply_item(item((3, 3), (2, 2)), torch.arange(9.0).reshape(3, 3)).tolist() == [[0, 1], [3, 4]]


@pytest.mark.parametrize("want", [(8, 5), (8, 20)])
def test_the_order_of_cast_and_crop_does_not_matter(want: tuple[int, ...], generator: torch.Generator) -> None:
    tensor, change = torch.randn(8, 12, generator=generator), item((8, 12), want)
    assert torch.equal(apply_item(change, tensor).bfloat16(), apply_item(change, tensor.bfloat16()))


def test_a_dropped_tensor_makes_nothing() -> None:
    with pytest.raises(AssertionError, match="k is dropped"):
        apply_item(item((2,), None), torch.zeros(2))


def test_the_configuration_made_from_sdxls_is_lbms() -> None:
    sdxl = {
        "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "norm_num_groups": 32,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816, "upcast_attention": None,
    }  # fmt: skip
    made = base_unet_config(sdxl, LBMConfig())
    assert {key: made[key] for key in LBM_UNET} == dict(LBM_UNET)
    assert denoiser_shapes(made) == denoiser_shapes(LBM_UNET)
