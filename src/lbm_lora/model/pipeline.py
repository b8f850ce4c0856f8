"""Translate images of the model's sizes: encode, follow the bridge, decode.

Every image is computed alone and with a generator of its own, so a result depends on the image and the seed, not on
what else is translated with it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.errors import ImageError, Option
from lbm_lora.model import bridge
from lbm_lora.model.build import LBMModel

_POSTERIOR = 0x705
"""Turns the seed of the bridge noise into the posterior's; torch uses 32 bits of a seed on the CPU."""

Images = Float[Tensor, "batch 3 height width"]
Latents = Float[Tensor, "batch channels rows columns"]


def translate(
    model: LBMModel,
    images: Images,
    *,
    steps: int = 1,
    seed: int = 0,
    sample_posterior: bool = False,
    tiled: bool | None = None,
) -> Images:
    """Translate images, one after the other.

    Args:
        model: with or without a LoRA in it.
        images: values in [-1, 1], sides that are multiples of `model.pixels_per_latent`.
        steps: denoiser calls, at least 1.
        seed: for the noise between steps, and for the posterior where it is sampled.
        sample_posterior: sample the VAE's posterior as LBM's own inference does, instead of taking its mean.
        tiled: decode in tiles; by default where the image is larger than the model's tile.

    Returns:
        fp32 values in [-1, 1], on the model's device.

    Raises:
        ImageError: a value is not finite.
    """
    latents = encode_sources(model, images, seed=seed, sample_posterior=sample_posterior)
    targets = [follow_bridge(model, latent, steps=steps, seed=seed) for latent in latents.split(1)]
    output = torch.cat([model.decode(target, tiled=tiled) for target in targets])
    check_finite(output, model.dtype, what="the model's output")
    return output.clamp(-1, 1)


def encode_sources(model: LBMModel, images: Images, *, seed: int = 0, sample_posterior: bool = False) -> Latents:
    """Latents of images in [-1, 1]: the posterior's mean, or a sample of it that the seed decides."""
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


def check_finite(images: Tensor, dtype: torch.dtype, *, what: str) -> None:
    """Refuse what a model has made of NaN and infinite values, with the likely reason.

    Args:
        dtype: that the networks ran in.
        what: the name of `images` in the error.

    Raises:
        ImageError: a value is not finite.
    """
    broken = int((~torch.isfinite(images)).sum())
    if not broken:
        return
    found = f"{what} holds {broken} non-finite values of {images.numel()}. "
    if dtype == torch.float16:
        raise ImageError(
            found, "fp16 ends at 65504, which the networks can leave: use ", Option("torch_dtype"), " bf16 or float."
        )
    raise ImageError(
        f"{found}{'bf16' if dtype == torch.bfloat16 else 'fp32'} has room enough: a weight of the model or of a LoRA "
        "is not finite, or a LoRA is scaled far too much (",
        Option("lora_scale"),
        ", ",
        Option("lora_alpha_is"),
        ").",
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
