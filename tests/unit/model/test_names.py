"""The names and shapes of an LBM's tensors, and the strict check of a file against them."""

from collections import Counter

import pytest
import torch

from lbm_lora.checkpoint import TensorSpec
from lbm_lora.errors import CheckpointError, ConfigError
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import LBM_UNET
from lbm_lora.model.names import check_shapes, checkpoint_shapes, empty_unet, shapes_of
from standins import MINI, TINY, lbm_unet_config, vae_config

SMALL = LBMConfig(unet=lbm_unet_config(TINY), vae=vae_config())


def specs_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(torch.bfloat16, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("config", [dict(LBM_UNET), lbm_unet_config(MINI)], ids=["real", "mini"])
def test_the_denoiser_has_1676_tensors(config: dict[str, object]) -> None:
    shapes = shapes_of(empty_unet(config))
    kinds = Counter(
        "linear" if len(s) == 2 else f"conv{s[2]}x{s[3]}" if len(s) == 4 else "1-D" for s in shapes.values()
    )
    assert kinds == {"linear": 741, "conv3x3": 40, "conv1x1": 11, "1-D": 884}
    assert all(name.endswith((".weight", ".bias")) for name in shapes)


def test_everything_that_is_wrong_is_in_one_error() -> None:
    expected = checkpoint_shapes(SMALL)
    specs = specs_of(expected | {"denoiser.conv_in.weight": (16, 8, 3, 3), "denoiser.more": (1,)})
    del specs["denoiser.conv_out.bias"]
    del specs["vae.vae_model.quant_conv.bias"]
    with pytest.raises(CheckpointError) as caught:
        check_shapes(specs, expected, where="model.safetensors")
    assert str(caught.value) == (
        "model.safetensors does not match its configuration. "
        "2 missing: denoiser.conv_out.bias, vae.vae_model.quant_conv.bias. "
        "1 unexpected: denoiser.more. "
        "1 of another shape: denoiser.conv_in.weight: (16, 8, 3, 3) in the file, (16, 4, 3, 3) in the configuration. "
        "Is this the right file, and is the config.yaml next to it the right one?"
    )


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        empty_unet(lbm_unet_config(TINY) | {"block_out_chanels": [1]})
    assert str(caught.value) == (
        "unet: UNet2DConditionModel has no setting 'block_out_chanels'. Did you mean 'block_out_channels'?"
    )
