"""Collect the statistics of a tuned model over images: one image at a time, in bounded memory.

The statistics keep a few of the measured points for checking predictions. Moments predict errors as if layers were
independent, but in a network errors add up: on the bundled mini model, output errors are 6 to 9 dB larger. A predictor
therefore runs the LoRA at these points and corrects its prediction by the result. The error of one LoRA varies by 5 dB
between images and by 3 dB between the timesteps of an image, so each point uses a different image if there are enough.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lbm_lora.calibration.hooks import checkpointed, measure
from lbm_lora.calibration.layers import CalledLayer, find_layers, vectors
from lbm_lora.calibration.statistics import CalibrationSettings, Origin, Statistics
from lbm_lora.calibration.sums import PartialFile, Sums
from lbm_lora.checkpoint import dtype_name
from lbm_lora.errors import ConfigError, InputError, Option
from lbm_lora.factorize import Moment, MomentAccumulator
from lbm_lora.fidelity.points import (
    Point,
    bridge_points,
    generator,
    image_latent,
    image_noise,
    timestep_tensor,
)
from lbm_lora.imaging.digests import ImageDigests, digests_of
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import Schedule, schedule_of
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import SILENT, Progress

CHECK_POINTS = 16
"""Most points kept in the statistics: 4 MB for one-megapixel images."""

SAVE_EVERY = 600.0
"""Seconds between two saves of the sums."""

_LARGE = 200_000_000  # parameters above which the activations of a full backward pass take too much memory


def collect(
    model: LBMModel,
    images: Sequence[Path],
    settings: CalibrationSettings | None = None,
    *,
    tuned: str = "",
    digests: ImageDigests | None = None,
    partial: PartialFile | None = None,
    save_every: float = SAVE_EVERY,
    is_checkpointed: bool | None = None,
    progress: Progress = SILENT,
) -> Statistics:
    """Measure the input moments and output sensitivities of every layer of the denoiser.

    Args:
        model: the tuned model, in fp32 or bf16: gradients leave the range of fp16.
        images: source images of the kind that the model is used on.
        settings: see `CalibrationSettings`.
        tuned: fingerprint of the denoiser, for the statistics' origin.
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
    origin = _origin(model, digests, settings, tuned)
    layers = find_layers(model.denoiser, lambda: model.denoise(_small_latent(model), timestep_tensor(1000.0)))
    sums = _start(model, layers, origin, partial, progress)
    progress.start((len(images) - sums.images) * len(origin.schedule), "measuring the tuned model")
    is_large = sum(parameter.numel() for parameter in model.denoiser.parameters()) >= _LARGE
    saved = time.monotonic()
    with checkpointed(model.denoiser, when=is_large if is_checkpointed is None else is_checkpointed):
        for index in range(sums.images, len(images)):
            _add_image(model, layers, images[index], index, origin, sums, progress)
            if partial is not None and time.monotonic() - saved >= save_every:
                partial.save(sums, origin)
                saved = time.monotonic()
    points = check_points(model, images, origin.schedule, size=origin.size, seed=origin.seed)
    return _statistics(layers, sums, origin, points, digests)


def check_points(
    model: LBMModel, images: Sequence[Path], schedule: Schedule, *, size: int | None, seed: int
) -> tuple[Point, ...]:
    """Return up to `CHECK_POINTS` of the calibration's points, spread over its images and timesteps.

    Args:
        size, seed: settings of the calibration.
    """
    points: list[Point] = []
    for image, chosen in groupby(sorted(spread(len(images), len(schedule))), key=lambda pair: pair[0]):
        wanted = {schedule[index][0] for _, index in chosen}
        source = image_latent(model, images[image], size=size)
        found = bridge_points(model, source, schedule, image_noise(seed, image))
        points += [point for point in found if point.timestep in wanted]
    return tuple(points)


def spread(images: int, timesteps: int) -> list[tuple[int, int]]:
    """Return up to `CHECK_POINTS` distinct (image index, timestep index) pairs: images first, timesteps in turn."""
    count = min(images, CHECK_POINTS)
    chosen = [index * images // count for index in range(count)]
    turns = range(timesteps)
    pairs = [(image, (order + turn) % timesteps) for turn in turns for order, image in enumerate(chosen)]
    return pairs[:CHECK_POINTS]


def random_signs(shape: Sequence[int], draw: torch.Generator) -> Tensor:
    """Draw a probe of independent signs, which estimate squared norms with the least variance (Hutchinson, 1989)."""
    return torch.randint(0, 2, tuple(shape), generator=draw).float() * 2 - 1


def _check(model: LBMModel, images: Sequence[Path]) -> None:
    if not images:
        raise ConfigError("calibration needs at least one image.")
    if model.dtype == torch.float16:
        raise ConfigError("calibration gradients exceed the range of fp16. Use bf16 or float.")


def _origin(model: LBMModel, digests: ImageDigests, settings: CalibrationSettings, tuned: str) -> Origin:
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
        progress.note(f"Ignoring {partial.path}: it is from a run with other inputs or settings.")
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
        draws = [generator(origin.seed, index, point.timestep, "probe", probe) for probe in range(origin.probes)]
        probes = [random_signs(point.state.shape, draw) for draw in draws]
        try:
            measure(
                model.denoiser,
                layers,
                lambda point=point: model.denoise(point.state, timestep_tensor(point.timestep)),
                probes,
                point.probability,
                sums,
            )
        except FloatingPointError:
            raise InputError(
                f"{path}: the model's output at timestep {point.timestep:g} has values that are not finite. Is the "
                "checkpoint damaged? In bf16, try ",
                Option("torch_dtype"),
                " float.",
            ) from None
        progress.advance()
    sums.images += 1


def _statistics(
    layers: Mapping[ModuleName, CalledLayer],
    sums: Sums,
    origin: Origin,
    points: tuple[Point, ...],
    digests: ImageDigests,
) -> Statistics:
    return Statistics(
        layers=layers,
        inputs=_Means(sums.inputs, sums.images),
        outputs=_Means(sums.outputs, sums.images),
        gradients={name: total / sums.images for name, total in sums.gradients.items()},
        vectors=_Means({name: found for name, found in sums.vectors.items() if not found.is_zero}, sums.images),
        output_values=sums.values / sums.images,
        output_energy=sums.energy / sums.images,
        origin=origin,
        check_points=points,
        image_digests=digests.each,
    )


Name = TypeVar("Name", ModuleName, ParamName)


class _Means(Mapping[Name, Moment]):
    """Moments of sums, each computed on access: all at once would double the memory."""

    def __init__(self, sums: Mapping[Name, MomentAccumulator], count: int) -> None:
        self._sums, self._count = sums, count

    def __getitem__(self, name: Name) -> Moment:
        return self._sums[name].result(self._count)

    def __iter__(self) -> Iterator[Name]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)
