"""The inputs that the network is measured on: a picture's latent, and states of its bridge.

A state between source and target needs a target latent, which calibration pictures do not have. The tuned model's own
one-step prediction takes its place: what the model is to give back is its own output.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from lbm_lora.calibrate.settings import Schedule
from lbm_lora.imaging.buckets import nearest_bucket, resized
from lbm_lora.imaging.files import read_image
from lbm_lora.imaging.tensors import to_tensor
from lbm_lora.model import bridge
from lbm_lora.model.build import LBMModel

Latent = Float[Tensor, "1 channels rows columns"]


def source_latent(model: LBMModel, path: Path, *, size: int | None = None, mirrored: bool = False) -> Latent:
    """The latent of a picture in the nearest of the model's buckets: the mean of the VAE's posterior.

    Args:
        size: square root of the pixel budget; by default the model's own.
        mirrored: left and right swapped.

    Raises:
        ImageError: the file cannot be read.
    """
    image = read_image(path)
    bucket = nearest_bucket(image.width, image.height, size or _model_size(model), step=model.pixels_per_latent)
    pixels = to_tensor([resized(image, bucket)])
    return model.encode(pixels.flip(-1) if mirrored else pixels)


@torch.no_grad()
def bridge_states(
    model: LBMModel, source: Latent, schedule: Schedule, *, seed: int, image: int
) -> Iterator[tuple[float, float, Latent]]:
    """(timestep, probability, state) for each timestep of the schedule.

    Args:
        seed, image: the bridge noise depends on them and on the timestep alone.
    """
    needs_target = any(timestep < bridge.TRAIN_TIMESTEPS for timestep, _ in schedule)
    target = source
    if needs_target:
        target = bridge.predict_target(source, 1.0, model.denoise(source, timestep_tensor(bridge.TRAIN_TIMESTEPS)))
    for timestep, probability in schedule:
        noise = bridge.standard_normal(source, [generator(seed, image, timestep, "noise")])
        sigma = timestep / bridge.TRAIN_TIMESTEPS
        yield timestep, probability, bridge.interpolate(source, target, sigma, noise, model.config.bridge_noise_sigma)


def timestep_tensor(timestep: float) -> Float[Tensor, "1"]:
    """A timestep as the network takes it."""
    return torch.tensor([timestep], dtype=torch.float32)


def random_signs(shape: Sequence[int], draw: torch.Generator) -> Tensor:
    """A probe: independent values of -1 and 1, which give squared norms with the least variance (Hutchinson, 1989)."""
    return torch.randint(0, 2, tuple(shape), generator=draw).float() * 2 - 1


def generator(*key: object) -> torch.Generator:
    """A CPU generator that the key decides; torch uses 32 bits of a seed there."""
    return torch.Generator().manual_seed(xxhash.xxh32_intdigest(" ".join(map(str, key)).encode()))


def digest_of(paths: Sequence[Path]) -> str:
    """32 hexadecimal digits over the pixels and sizes of pictures, in their order; each file is decoded once.

    Raises:
        ImageError: a file cannot be read.
    """
    digest = xxhash.xxh3_128()
    for path in paths:
        image = read_image(path)
        digest.update(f"{image.size}\n".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def _model_size(model: LBMModel) -> int:
    """The square root of the pixel budget that a model was made for: 1024 for the published LBM."""
    sample = model.config.unet_config.get("sample_size") or 128
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    return round(math.sqrt(rows * columns)) * model.pixels_per_latent
