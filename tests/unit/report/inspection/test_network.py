"""Kinds and layers of parameters, and LBM's own list, which is that of the bundled model."""

import pytest

from lbm_lora.bundled import TUNED
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.naming import ParamName
from lbm_lora.report.inspection.network import LBM_PARAMS, coverage_of, kind_of_param, layer_of


def test_lbms_parameters_are_those_of_the_bundled_model() -> None:
    with open_checkpoint(TUNED) as tuned:
        assert set(LBM_PARAMS) == set(tuned.component())
    assert len(LBM_PARAMS) == 1676


@pytest.mark.parametrize(
    ("name", "shape", "kind", "layer"),
    [
        ("conv_in.weight", (8, 4, 3, 3), "conv 3x3", "conv"),
        ("up_blocks.0.resnets.1.conv_shortcut.weight", (8, 4, 1, 1), "conv 1x1", "conv_shortcut"),
        ("up_blocks.0.upsamplers.0.conv.bias", (8,), "bias", "conv"),
        ("mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0.weight", (8, 8), "linear", "attn1.to_out"),
        ("mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj.weight", (8, 8), "linear", "ff.net.proj"),
        ("mid_block.attentions.0.transformer_blocks.3.norm3.weight", (8,), "norm", "norm"),
        ("conv_norm_out.bias", (8,), "norm", "norm"),
        ("time_embedding.linear_2.weight", (8, 8), "linear", "linear"),
        ("position", (3, 4, 5), "matrix", "other"),
        ("scale", (), "other", "other"),
    ],
)
def test_what_a_parameter_is(name: str, shape: tuple[int, ...], kind: str, layer: str) -> None:
    assert kind_of_param(ParamName(name), shape) == kind
    assert layer_of(ParamName(name)) == layer


def test_what_is_left_out_is_counted_by_kind_and_named() -> None:
    left_out = ("conv_in.weight", "conv_in.bias", "conv_norm_out.weight", "time_embedding.linear_1.weight")
    held = [name for name in LBM_PARAMS if name not in left_out] + [ParamName("extra.weight")]
    found = coverage_of(held)
    assert found is not None
    assert set(found.missing) == set(left_out)
    assert found.missing_kinds == {"conv": 1, "bias": 1, "linear": 1, "norm": 1}
    assert found.unexpected == ("extra.weight",)


def test_another_networks_names_are_not_compared_with_lbms() -> None:
    assert coverage_of([ParamName("encoder.layer.0.weight"), ParamName("conv_in.weight"), ParamName("b")]) is None
    assert coverage_of([]) is None
