"""Points of the bridge: inputs at which a denoiser is measured, compared and trained.

A point between source and target needs a target latent, which images for measuring do not have. The tuned model's
one-step prediction replaces it, since a LoRA should reproduce the tuned model's output.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from lbm_lora.imaging.buckets import to_bucket, warn_of_size
from lbm_lora.imaging.image_file import read_image
from lbm_lora.model import bridge
from lbm_lora.model.bridge_pipeline import standard_normal
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import Schedule

Latent = Float[Tensor, "1 channels rows columns"]
NoiseAt = Callable[[float], torch.Generator]
"""Map from timestep to the CPU generator of its bridge noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A point on the bridge of one image.

    Attributes:
        timestep: in (0, 1000]; 1000 is the source.
        probability: probability of the timestep in training.
        state: latent at the point, fp32, on the CPU.
    """

    timestep: float
    probability: float
    state: Latent


def image_latent(model: LBMModel, path: Path, *, size: int | None = None, mirrored: bool = False) -> Latent:
    """Return the latent of an image in the nearest of the model's buckets: the mean of the VAE's posterior.

    Args:
        size: square root of the pixel budget; by default the model's own.
    """
    warn_of_size(size, model.size)
    images = to_bucket(read_image(path), size or model.size, step=model.pixels_per_latent)
    return model.encode(images.flip(-1) if mirrored else images)


@torch.no_grad()
def bridge_points(model: LBMModel, source: Latent, schedule: Schedule, noise_at: NoiseAt) -> Iterator[Point]:
    """Yield the points of one image at the timesteps of a schedule, in its order.

    Args:
        model: the tuned model, whose one-step prediction is the end of the bridge.
    """
    source = source.to(model.device, model.dtype)
    target = source
    if any(timestep < bridge.TRAIN_TIMESTEPS for timestep, _ in schedule):
        target = bridge.predict_target(source, 1.0, model.denoise(source, timestep_tensor(bridge.TRAIN_TIMESTEPS)))
    for timestep, probability in schedule:
        noise = standard_normal(source, [noise_at(timestep)])
        sigma = timestep / bridge.TRAIN_TIMESTEPS
        state = bridge.interpolate(source, target, sigma, noise, model.config.bridge_noise_sigma)
        yield Point(timestep=timestep, probability=probability, state=state.float().cpu())


def image_noise(seed: int, image: int) -> NoiseAt:
    """Return bridge noise that depends only on the seed, the image index and the timestep."""
    return lambda timestep: generator(seed, image, timestep, "noise")


def shared_noise(seed: int) -> NoiseAt:
    """Return bridge noise shared by all images, which depends on the seed and on the timesteps before each one."""
    draw = torch.Generator().manual_seed(seed)
    return lambda _: draw


def timestep_tensor(timestep: float) -> Float[Tensor, "1"]:
    """Return a timestep in the form that the network takes."""
    return torch.tensor([timestep], dtype=torch.float32)


def generator(*key: object) -> torch.Generator:
    """Return a CPU generator seeded by the key, of which torch uses 32 bits."""
    return torch.Generator().manual_seed(xxhash.xxh32_intdigest(" ".join(map(str, key)).encode()))
