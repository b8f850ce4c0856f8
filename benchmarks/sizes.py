"""The networks of the pair: LBM's own, or narrower and shallower ones of the same topology."""

from collections.abc import Mapping
from typing import Any

from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import LBM_UNET, SDXL_VAE

FULL_DEPTH = (1, 2, 10)
_HEAD = 64  # channels of an attention head in SDXL's UNet
_GROUP = 32  # what widths must be multiples of


def lbm_config(scale: float, depth: tuple[int, int, int] | None = None) -> LBMConfig:
    """LBM's configuration with networks of a scale.

    Args:
        scale: of the widths, and of the depth where that is not given; 1 is the real LBM.
        depth: transformer layers of the three levels; (1, 2, 10) is the real LBM's.
    """
    if scale == 1 and depth is None:
        return LBMConfig(unet=dict(LBM_UNET), vae=dict(SDXL_VAE))
    return LBMConfig(unet=_unet(scale, depth or _depth(scale)), vae=_vae(scale))


def backbone_unet(unet: Mapping[str, Any]) -> dict[str, Any]:
    """SDXL's UNet configuration for a denoiser's: text cross-attention, and the added text and time embedding."""
    width = unet["block_out_channels"][0]
    return dict(unet) | {
        "_class_name": "UNet2DConditionModel",
        "cross_attention_dim": 2048 * width // 320,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }


def _depth(scale: float) -> tuple[int, int, int]:
    first, second, third = (max(1, round(layers * scale)) for layers in FULL_DEPTH)
    return first, second, third


def _unet(scale: float, depth: tuple[int, int, int]) -> dict[str, Any]:
    width = _HEAD * max(1, round(320 * scale / _HEAD)) if scale >= 0.15 else _GROUP
    widths = [width, 2 * width, 4 * width]
    return dict(LBM_UNET) | {
        "block_out_channels": widths,
        "transformer_layers_per_block": list(depth),
        "attention_head_dim": [max(1, channels // _HEAD) for channels in widths],
        "cross_attention_dim": widths,
    }


def _vae(scale: float) -> dict[str, Any]:
    width = max(_GROUP, _GROUP * round(128 * scale / _GROUP))
    return dict(SDXL_VAE) | {"block_out_channels": [width, 2 * width, 4 * width, 4 * width]}
