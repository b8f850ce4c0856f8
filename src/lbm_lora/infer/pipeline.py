"""Translate a picture: stretch it to the model's size, encode, follow the bridge, decode, stretch back.

Every picture is computed alone and with a generator of its own, so a result depends on the picture and the
seed, not on what else is translated with it.
"""

import logging
import math

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lbm_lora.errors import ConfigError
from lbm_lora.imaging.buckets import nearest_bucket, resized
from lbm_lora.imaging.masks import paste_back
from lbm_lora.imaging.tensors import to_images, to_tensor
from lbm_lora.model import bridge
from lbm_lora.model.build import LBMModel
from lbm_lora.model.config import LBMConfig

logger = logging.getLogger(__name__)

_POSTERIOR = 0x705
"""Turns the seed of the bridge's noise into the posterior's; torch uses 32 bits of a seed on the CPU."""

Images = Float[Tensor, "batch 3 height width"]
Latents = Float[Tensor, "batch channels rows columns"]


def translate_image(
    model: LBMModel,
    image: Image.Image,
    *,
    steps: int = 1,
    seed: int = 0,
    size: int | None = None,
    mask: Image.Image | None = None,
    sample_posterior: bool = False,
    tiled: bool | None = None,
) -> Image.Image:
    """Translate one picture; the result has its size.

    Args:
        model: from `load_model`, with or without a LoRA in it.
        image: mode `RGB`, any size.
        steps: denoiser calls; a number that leaves the trained timesteps is logged as a warning.
        seed: of the noise between steps, and of the posterior where it is sampled.
        size: square root of the pixel budget; by default the model's own.
        mask: mode `L`, the picture's size: where it is black, the source is kept.
        sample_posterior: sample the VAE's posterior as LBM's own inference does, instead of taking its mean.
        tiled: decode in tiles; by default where the picture is larger than the model's tile.

    Raises:
        ConfigError: `steps` is below 1, or `size` below 64.
        ImageError: the result holds NaN or infinite values.
    """
    check_steps(model.config, steps)
    source = to_model_size(model, image, size=size)
    target = translate(model, source, steps=steps, seed=seed, sample_posterior=sample_posterior, tiled=tiled)
    return to_source_size(target, image, mask=mask)


def translate(
    model: LBMModel,
    images: Images,
    *,
    steps: int = 1,
    seed: int = 0,
    sample_posterior: bool = False,
    tiled: bool | None = None,
) -> Images:
    """Translate pictures of the model's sizes, one after the other.

    The images hold values in [-1, 1] and have sides that are multiples of `model.pixels_per_latent`; the
    other arguments are those of `translate_image`. The result is fp32, in [-1, 1], on the model's device.
    """
    latents = encode_sources(model, images, seed=seed, sample_posterior=sample_posterior)
    targets = [follow_bridge(model, latent, steps=steps, seed=seed) for latent in latents.split(1)]
    return torch.cat([model.decode(target, tiled=tiled).clamp(-1, 1) for target in targets])


def encode_sources(model: LBMModel, images: Images, *, seed: int = 0, sample_posterior: bool = False) -> Latents:
    """Latents of pictures in [-1, 1]: the posterior's mean, or a sample of it that the seed decides."""
    # With one seed for both, the posterior's noise would come again between the first two steps.
    draws = [[_generator(seed ^ _POSTERIOR)] if sample_posterior else None for _ in images]
    return torch.cat([model.encode(image, generator=draw) for image, draw in zip(images.split(1), draws, strict=True)])


@torch.no_grad()
def follow_bridge(
    model: LBMModel, latent: Latents, *, steps: int, seed: int, denoise: bridge.Denoise | None = None
) -> Latents:
    """The target latent of one source latent (a batch of one); the seed decides the noise between steps.

    `denoise` is called in place of the model's own where it is given.
    """
    noise_sigma = model.config.bridge_noise_sigma
    return bridge.sample(denoise or model.denoise, latent, steps, noise_sigma, [_generator(seed)])


def model_size(model: LBMModel) -> int:
    """The square root of the pixel budget that a model was made for: 1024 for the published LBM."""
    sample = model.config.unet_config.get("sample_size") or 128
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    return round(math.sqrt(rows * columns)) * model.pixels_per_latent


def to_model_size(model: LBMModel, image: Image.Image, *, size: int | None = None) -> Images:
    """A picture stretched to the nearest of the model's buckets, as a batch of one in [-1, 1]."""
    width, height = nearest_bucket(image.width, image.height, size or model_size(model), step=model.pixels_per_latent)
    return to_tensor([resized(image, (width, height))])


def to_source_size(output: Images, source: Image.Image, *, mask: Image.Image | None = None) -> Image.Image:
    """An output (a batch of one) in the source's size, pasted on the source where there is a mask."""
    result = resized(to_images(output)[0], source.size)
    return result if mask is None else paste_back(source, result, mask)


def check_steps(config: LBMConfig, steps: int) -> None:
    """Warn of a number of steps that calls the denoiser at timesteps it was not trained on.

    Raises:
        ConfigError: `steps` is below 1.
    """
    if steps < 1:
        raise ConfigError(f"{steps} steps cannot be taken. Use 1 or more.")
    good = config.step_counts
    if good is not None and steps not in good:
        names = ", ".join(str(count) for count in good) or "none"
        logger.warning("%d steps leave the timesteps that the model was trained on. Trained: %s.", steps, names)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
