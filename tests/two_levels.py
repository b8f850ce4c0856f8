"""A random LBM of two levels, and images for it: small enough to measure every layer of it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from lbm_lora.model.bridge_pipeline import follow_bridge
from lbm_lora.model.build import LBMModel
from lbm_lora.model.config import LBMConfig
from standins import backbone_unet_config, vae_config


def two_level_model() -> LBMModel:
    """A random LBM of two levels in fp32, with enough bridge noise to see it."""
    unet: dict[str, Any] = backbone_unet_config() | {
        "sample_size": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [16, 48],
        "cross_attention_dim": [16, 48],
        "layers_per_block": 1,
        "transformer_layers_per_block": 1,
        "attention_head_dim": [1, 2],
        "addition_embed_type": None,
    }
    config = LBMConfig(unet=unet, vae=vae_config(), bridge_noise_sigma=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = UNet2DConditionModel(**{key: value for key, value in unet.items() if not key.startswith("_")})
        vae = AutoencoderKL(**{key: value for key, value in vae_config().items() if not key.startswith("_")})
    return LBMModel(
        denoiser=denoiser.requires_grad_(False).eval(),
        vae=vae.requires_grad_(False).eval(),
        config=config,
        device=torch.device("cpu"),
        dtype=torch.float32,
        vae_dtype=torch.float32,
    )


def translate(model: LBMModel, images: torch.Tensor, *, steps: int = 1, seed: int = 0) -> torch.Tensor:
    """What a model makes of images in [-1, 1], of its own sizes: encode, follow the bridge, decode; one by one."""
    made: list[torch.Tensor] = []
    for image in images.split(1):
        draw = torch.Generator().manual_seed(seed)
        target = follow_bridge(model.denoise, model.encode(image), steps, model.config.bridge_noise_sigma, [draw])
        made.append(model.decode(target).clamp(-1, 1))
    return torch.cat(made)


def noise_images(folder: Path) -> tuple[Path, ...]:
    """Two images of noise, of different shapes."""
    draw = np.random.default_rng(0)
    paths = tuple(folder / f"{index}.png" for index in range(2))
    for path, (height, width) in zip(paths, ((64, 64), (40, 90)), strict=True):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths
