"""Collect the statistics of a tuned LBM over images: one image at a time, in bounded memory."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.calibration.hooks import checkpointed
from lbm_lora.calibration.layers import CalledLayer, find_layers, vectors
from lbm_lora.calibration.samples import Sample, add_sample, statistics_of
from lbm_lora.calibration.statistics import CalibrationSettings, Origin, Statistics
from lbm_lora.calibration.sums import PartialFile, Sums
from lbm_lora.checkpoint import dtype_name
from lbm_lora.errors import ConfigError
from lbm_lora.fidelity.checks import held_out
from lbm_lora.fidelity.points import (
    bridge_points,
    image_latent,
    image_noise,
    timestep_tensor,
)
from lbm_lora.imaging.digests import ImageDigests, digests_of
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import schedule_of
from lbm_lora.naming import ModuleName
from lbm_lora.progress import SILENT, Progress

SAVE_EVERY = 600.0
"""Seconds between two saves of the sums."""

_LARGE = 200_000_000  # parameters above which the activations of a full backward pass take too much memory


def collect(
    model: LBMModel,
    images: Sequence[Path],
    settings: CalibrationSettings | None = None,
    *,
    tuned: str = "",
    around: str = "",
    digests: ImageDigests | None = None,
    partial: PartialFile | None = None,
    save_every: float = SAVE_EVERY,
    is_checkpointed: bool | None = None,
    progress: Progress = SILENT,
) -> Statistics:
    """Measure the input moments and output sensitivities of every layer of the denoiser.

    Of four and more images one in four, 16 at most, is held out: see `check_points.with_checks`.

    Args:
        model: the tuned model, in fp32 or bf16: gradients leave the range of fp16.
        images: source images of the kind that the model is used on.
        settings: see `CalibrationSettings`.
        tuned, around: digests for the statistics' `Origin`.
        digests: digests of the images if already known; otherwise all images are read before the first is measured.
        partial: file to save the sums to periodically and to resume from; it is not removed.
        save_every: seconds between two saves, each after an image.
        is_checkpointed: recompute activations instead of keeping them; by default for large models.
        progress: counts images times timesteps.

    Raises:
        ConfigError: there are no images, the model is in fp16, or a setting is invalid.
        ImageError: images cannot be read; the message names all of them.
        InputError: the model's output is not finite.
    """
    settings = settings or CalibrationSettings()
    _check(model, images)
    digests = digests or digests_of(images)
    origin = _origin(model, digests, settings, tuned, around)
    layers = find_layers(model.denoiser, lambda: model.denoise(_small_latent(model), timestep_tensor(1000.0)))
    sums = _start(model, layers, origin, partial, progress)
    held = held_out(len(images))
    measured = [index for index in range(len(images)) if index not in held]
    progress.start((len(measured) - sums.images) * len(origin.schedule), "measuring the tuned model")
    is_large = sum(parameter.numel() for parameter in model.denoiser.parameters()) >= _LARGE
    saved = time.monotonic()
    with checkpointed(model.denoiser, when=is_large if is_checkpointed is None else is_checkpointed):
        for index in measured[sums.images :]:
            _add_image(model, layers, images[index], index, origin, sums, progress)
            if partial is not None and time.monotonic() - saved >= save_every:
                partial.save(sums, origin)
                saved = time.monotonic()
    return statistics_of(model.denoiser, layers, sums, origin, digests.each)


def _check(model: LBMModel, images: Sequence[Path]) -> None:
    if not images:
        raise ConfigError("calibration needs at least one image.")
    if model.dtype == torch.float16:
        raise ConfigError("calibration gradients exceed the range of fp16. Use bf16 or float.")


def _origin(model: LBMModel, digests: ImageDigests, settings: CalibrationSettings, tuned: str, around: str) -> Origin:
    count = len(digests.each)
    return Origin(
        tuned=tuned,
        images=digests.together,
        count=count,
        schedule=schedule_of(model.config, settings.timesteps),
        probes=settings.probes_for(count),
        size=settings.size,
        seed=settings.seed,
        dense_up_to=settings.dense_up_to,
        sketch_rank=settings.sketch_rank,
        dtype=dtype_name(model.dtype),
        conv_dense_up_to=settings.conv_dense_up_to,
        around=around,
    )


def _small_latent(model: LBMModel) -> Tensor:
    """Return zeros of the smallest size that every level of the denoiser can halve."""
    side = 2 ** len(model.config.unet_config["down_block_types"])
    return torch.zeros(1, model.config.vae_num_channels, side, side)


def _start(
    model: LBMModel,
    layers: Mapping[ModuleName, CalledLayer],
    origin: Origin,
    partial: PartialFile | None,
    progress: Progress,
) -> Sums:
    """Return the sums of an interrupted run, or zeros."""
    sums = partial.load(origin, model.device) if partial is not None else None
    if partial is not None and sums is not None:
        progress.note(f"Resuming with {sums.images} of {origin.count} images from {partial.path}.")
        return sums
    if partial is not None and partial.path.exists():
        progress.note(f"Replacing {partial.path}, which is from a run with other inputs or settings.")
    return Sums.empty(
        layers,
        {name: vector.numel() for name, vector in vectors(model.denoiser)},
        dense_up_to=origin.dense_up_to,
        sketch_rank=origin.sketch_rank,
        conv_dense_up_to=origin.conv_dense_up_to,
        seed=origin.seed,
        device=model.device,
    )


def _add_image(
    model: LBMModel,
    layers: Mapping[ModuleName, CalledLayer],
    path: Path,
    index: int,
    origin: Origin,
    sums: Sums,
    progress: Progress,
) -> None:
    """Measure one image at every timestep."""
    source = image_latent(model, path, size=origin.size)
    for point in bridge_points(model, source, origin.schedule, image_noise(origin.seed, index)):
        sample = Sample(
            forward=partial(model.denoise, point.state, timestep_tensor(point.timestep)),
            weight=point.probability,
            key=(origin.seed, index, point.timestep),
            label=f"{path}: the model's output at timestep {point.timestep:g}",
        )
        add_sample(model.denoiser, layers, sample, origin.probes, sums)
        progress.advance()
    sums.images += 1
