"""Constants of LBM's own networks that neither its published checkpoints nor config.yaml record.

The denoiser is SDXL's UNet without its added text and time embedding, and with cross-attention as wide as
the block, since attn2 attends to the image itself. The VAE is SDXL's. Both are given as diffusers
configurations; the facts come from the public SDXL repository and the LBM paper (arXiv 2503.07535, section 4).
"""

from collections.abc import Mapping
from typing import Any, Final

from lbm_lora.checkpoint import TensorSpec
from lbm_lora.naming import DENOISER_PREFIX

VAE_PREFIX: Final = "vae.vae_model."
ITERATIONS_KEY: Final = "num_iterations"

SDXL_SIGNATURE: Final = "stabilityai/stable-diffusion-xl-base-1.0"
"""The backbone of the published LBM models."""

LBM_UNET: Final[Mapping[str, Any]] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": [320, 640, 1280],
    "norm_num_groups": 32,
    "use_linear_projection": True,
    "addition_embed_type": None,
}

SDXL_VAE: Final[Mapping[str, Any]] = {
    "sample_size": 1024,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}

LBM_TENSORS: Final = 1676
"""Tensors of the denoiser: 792 matrices and 884 biases and norms."""

_UNET_LANDMARKS: Final = {
    "time_embedding.linear_1.weight": (1280, 320),
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k.weight": (640, 640),
    "mid_block.attentions.0.transformer_blocks.9.attn2.to_k.weight": (1280, 1280),
    "up_blocks.2.resnets.2.conv_shortcut.weight": (320, 640, 1, 1),
}
_VAE_LANDMARKS: Final = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.mid_block.resnets.0.conv1.weight": (512, 512, 3, 3),
    "decoder.conv_out.weight": (3, 128, 3, 3),
}


def has_lbm_unet(specs: Mapping[str, TensorSpec]) -> bool:
    """Return whether a checkpoint's denoiser has the names and widths of the real LBM's (any number of inputs)."""
    count = sum(name.startswith(DENOISER_PREFIX) for name in specs)
    return count == LBM_TENSORS and _agree(specs, DENOISER_PREFIX, _UNET_LANDMARKS)


def has_sdxl_vae(specs: Mapping[str, TensorSpec]) -> bool:
    """Return whether a checkpoint's VAE has the widths of SDXL's."""
    return _agree(specs, VAE_PREFIX, _VAE_LANDMARKS)


def _agree(specs: Mapping[str, TensorSpec], prefix: str, landmarks: Mapping[str, tuple[int, ...]]) -> bool:
    return all(prefix + name in specs and specs[prefix + name].shape == shape for name, shape in landmarks.items())
