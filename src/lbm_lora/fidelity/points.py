"""Points of the bridge: the inputs that a denoiser is measured, compared and taught at.

A point between source and target needs a target latent, which images to measure on do not have. The tuned model's own
one-step prediction takes its place: what a LoRA is to give back is the tuned model's own output.
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
"""timestep -> the CPU generator that the bridge noise there is drawn from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A point of the bridge of one image.

    Attributes:
        timestep: in (0, 1000]; 1000 is the source.
        probability: of the timestep in training.
        state: fp32, on the CPU.
    """

    timestep: float
    probability: float
    state: Latent


def image_latent(model: LBMModel, path: Path, *, size: int | None = None, mirrored: bool = False) -> Latent:
    """The latent of an image in the nearest of the model's buckets: the mean of the VAE's posterior.

    Args:
        size: square root of the pixel budget; by default the model's own.
        mirrored: left and right swapped.

    Raises:
        ImageError: the file cannot be read.
        ConfigError: `size` is below 64.
    """
    warn_of_size(size, model.size)
    images = to_bucket(read_image(path), size or model.size, step=model.pixels_per_latent)
    return model.encode(images.flip(-1) if mirrored else images)


@torch.no_grad()
def bridge_points(model: LBMModel, source: Latent, schedule: Schedule, noise_at: NoiseAt) -> Iterator[Point]:
    """The points of one image at the timesteps of a schedule, in its order.

    Args:
        model: the tuned one, whose one-step prediction is the end of the bridge.
        source: a batch of one.
        noise_at: see `image_noise` and `shared_noise`.
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
    """Bridge noise that depends on the seed, the number of the image, and the timestep alone."""
    return lambda timestep: generator(seed, image, timestep, "noise")


def shared_noise(seed: int) -> NoiseAt:
    """Bridge noise that all images share; that of a timestep depends on the seed and on the timesteps before it."""
    draw = torch.Generator().manual_seed(seed)
    return lambda _: draw


def timestep_tensor(timestep: float) -> Float[Tensor, "1"]:
    """A timestep as the network takes it."""
    return torch.tensor([timestep], dtype=torch.float32)


def generator(*key: object) -> torch.Generator:
    """A CPU generator that the key decides; torch uses 32 bits of a seed there."""
    return torch.Generator().manual_seed(xxhash.xxh32_intdigest(" ".join(map(str, key)).encode()))
