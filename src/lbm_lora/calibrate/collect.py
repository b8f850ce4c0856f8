"""Collect the statistics of a tuned model over pictures: one picture at a time, in bounded memory."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from lbm_lora.calibrate.checks import Check, check_states
from lbm_lora.calibrate.layers import Layer, find_layers
from lbm_lora.calibrate.measure import checkpointed, measure
from lbm_lora.calibrate.partial import PartialFile
from lbm_lora.calibrate.settings import Settings, schedule_of
from lbm_lora.calibrate.states import (
    Latent,
    bridge_states,
    digest_of,
    generator,
    random_signs,
    source_latent,
    timestep_tensor,
)
from lbm_lora.calibrate.statistics import Origin, Statistics
from lbm_lora.calibrate.sums import Accumulators, Sums
from lbm_lora.checkpoint import dtype_name
from lbm_lora.errors import ConfigError, InputError
from lbm_lora.factorize import Moment
from lbm_lora.model.build import LBMModel
from lbm_lora.naming import ModuleName
from lbm_lora.progress import SILENT, Progress

SAVE_EVERY = 600.0
"""Seconds between two saves of the sums."""

_LARGE = 200_000_000  # parameters from which on the activations of a whole backward pass are too many


def collect(
    model: LBMModel,
    images: Sequence[Path],
    settings: Settings | None = None,
    *,
    tuned: str = "",
    partial: PartialFile | None = None,
    save_every: float = SAVE_EVERY,
    is_checkpointed: bool | None = None,
    progress: Progress = SILENT,
) -> Statistics:
    """Measure the input moments and output sensitivities of every layer of the denoiser.

    Args:
        model: the tuned model, in fp32 or bf16: gradients leave the range of fp16.
        images: pictures of what the model is used on; only sources are needed.
        settings: see `Settings`.
        tuned: fingerprint of the denoiser, for the statistics' origin.
        partial: where the sums are saved from time to time, and taken up again; it is left in place.
        save_every: seconds between two saves, which come after a picture.
        is_checkpointed: compute activations twice instead of keeping them; by default in a large model.
        progress: counts pictures times timesteps.

    Raises:
        ConfigError: no images, fp16, or settings that cannot be.
        ImageError: a picture cannot be read; all are read before the first is measured.
        InputError: the model's output is not finite.
    """
    settings = settings or Settings()
    origin = _origin(model, images, settings, tuned)
    layers = find_layers(model.denoiser, lambda: model.denoise(_small_latent(model), timestep_tensor(1000.0)))
    sums = _start(layers, origin, partial, model.device, progress)
    progress.start(len(images) * len(origin.schedule), "measuring the tuned model")
    progress.advance(sums.images * len(origin.schedule))
    is_large = sum(parameter.numel() for parameter in model.denoiser.parameters()) >= _LARGE
    saved = time.monotonic()
    with checkpointed(model.denoiser, when=is_large if is_checkpointed is None else is_checkpointed):
        for index in range(sums.images, len(images)):
            _add_image(model, layers, images[index], index, origin, sums, progress)
            if partial is not None and time.monotonic() - saved >= save_every:
                partial.save(sums, origin)
                saved = time.monotonic()
    checks = check_states(model, images, origin.schedule, size=origin.size, seed=origin.seed)
    return _statistics(layers, sums, origin, checks)


def _origin(model: LBMModel, images: Sequence[Path], settings: Settings, tuned: str) -> Origin:
    if not images:
        raise ConfigError("nothing to calibrate with: no images.")
    if model.dtype == torch.float16:
        raise ConfigError("calibration needs gradients, which leave the range of fp16. Use bf16 or float.")
    return Origin(
        tuned=tuned,
        images=digest_of(images),
        count=len(images),
        schedule=schedule_of(model.config, settings.timesteps),
        probes=settings.probes_for(len(images)),
        size=settings.size,
        seed=settings.seed,
        dense_up_to=settings.dense_up_to,
        sketch_rank=settings.sketch_rank,
        dtype=dtype_name(model.dtype),
    )


def _small_latent(model: LBMModel) -> Latent:
    """Zeros of the smallest size that every level of the denoiser can halve."""
    side = 2 ** len(model.config.unet_config["down_block_types"])
    return torch.zeros(1, model.config.vae_num_channels, side, side)


def _start(
    layers: Mapping[ModuleName, Layer],
    origin: Origin,
    partial: PartialFile | None,
    device: torch.device,
    progress: Progress,
) -> Sums:
    """The sums of a run that was stopped, or zeros."""
    sums = partial.load(origin, device) if partial is not None else None
    if partial is not None and sums is not None:
        progress.note(f"{sums.images} of {origin.count} images are taken over from {partial.path}.")
        return sums
    if partial is not None and partial.path.exists():
        progress.note(f"{partial.path} is of a run with other inputs or settings: it is not used.")
    return Sums.empty(
        layers, dense_up_to=origin.dense_up_to, sketch_rank=origin.sketch_rank, seed=origin.seed, device=device
    )


def _add_image(
    model: LBMModel,
    layers: Mapping[ModuleName, Layer],
    path: Path,
    index: int,
    origin: Origin,
    sums: Sums,
    progress: Progress,
) -> None:
    """Measure one picture at every timestep."""
    source = source_latent(model, path, size=origin.size)
    for timestep, probability, state in bridge_states(model, source, origin.schedule, seed=origin.seed, image=index):
        draws = [generator(origin.seed, index, timestep, "probe", probe) for probe in range(origin.probes)]
        probes = [random_signs(state.shape, draw) for draw in draws]
        try:
            measure(
                model.denoiser,
                layers,
                lambda state=state, timestep=timestep: model.denoise(state, timestep_tensor(timestep)),
                probes,
                probability,
                sums,
            )
        except FloatingPointError:
            raise InputError(
                f"{path}: the model's output at timestep {timestep:g} holds values that are not finite. Is the "
                "checkpoint whole? In bf16, try --torch_dtype float."
            ) from None
        progress.advance()
    sums.images += 1


def _statistics(
    layers: Mapping[ModuleName, Layer], sums: Sums, origin: Origin, checks: tuple[Check, ...]
) -> Statistics:
    return Statistics(
        layers=layers,
        inputs=_Means(sums.inputs, sums.images),
        outputs=_Means(sums.outputs, sums.images),
        gradients={name: total / sums.images for name, total in sums.gradients.items()},
        output_values=sums.values / sums.images,
        output_energy=sums.energy / sums.images,
        origin=origin,
        checks=checks,
    )


class _Means(Mapping[ModuleName, Moment]):
    """The moments of sums, each made when it is asked for: all at once would double the memory."""

    def __init__(self, sums: Accumulators, count: int) -> None:
        self._sums, self._count = sums, count

    def __getitem__(self, name: ModuleName) -> Moment:
        return self._sums[name].result(self._count)

    def __iter__(self) -> Iterator[ModuleName]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)
