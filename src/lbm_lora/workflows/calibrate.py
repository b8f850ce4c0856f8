"""Measure the effect of errors in each layer on a tuned model's output: the verb `calibrate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lbm_lora.calibration import (
    CalibrationSettings,
    Origin,
    PartialFile,
    Statistics,
    collect,
    load_statistics,
    save_statistics,
    with_checks,
)
from lbm_lora.checkpoint import Checkpoint, dtype_name, dtype_of, fingerprint, open_checkpoint
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.errors import CheckpointError, ConfigError, Option, OutputError
from lbm_lora.files import Outputs, written_bytes
from lbm_lora.hub import localized
from lbm_lora.imaging.digests import digests_of
from lbm_lora.imaging.paths import expand_sources
from lbm_lora.model.build import load_model
from lbm_lora.model.device import resolve_device
from lbm_lora.model.resolve import around, resolve_config
from lbm_lora.model.schedule import schedule_of
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class CalibrateResult:
    """Written file, and its contents."""

    statistics: Path
    nbytes: int
    layers: int
    moments: int
    """Moments of inputs and outputs; layers with the same input share one."""
    images: int
    timesteps: tuple[float, ...]
    probes: int


def run(config: CalibrateConfig, progress: Progress = SILENT) -> CalibrateResult:
    """Measure. An interrupted run resumes from its last saved sums, next to the output.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    config = localized(config, progress)
    images = chosen_images(config, expand_sources(config.images))
    check_output(config, images)
    return _run(config, images, progress)


def _run(config: CalibrateConfig, images: Sequence[Path], progress: Progress) -> CalibrateResult:
    partial = PartialFile(config.save_to, overwrite=config.overwrite)
    with open_checkpoint(config.tuned_model_path) as tuned:
        statistics = collected(config, tuned, images, partial, progress)
    progress.start(0, "writing")
    save_statistics(statistics, config.save_to)
    partial.remove()
    return _result(config, statistics)


def measured(config: CalibrateConfig, progress: Progress = SILENT) -> Path:
    """Measure for another command, or take the file at the output's path if it is what measuring would give.

    Returns:
        The path of the statistics.

    Raises:
        InputError: as in `run`; or the file cannot be read.
        OutputError: the file holds other statistics, which nobody named and which may have taken hours.
    """
    config = localized(config, progress)
    images = chosen_images(config, expand_sources(config.images))
    path = config.save_to
    found = _found(path, overwrite=config.overwrite)
    if found is not None and _is_origin(found, config, images):
        progress.note(f"{path} was measured on these images: it is used again.")
        return path
    if found is not None and not config.overwrite:
        raise OutputError(
            f"{path} holds statistics of another model, other images or other settings, or is of an earlier version. "
            "Move it, choose another output path, or use ",
            Option("overwrite"),
            " to replace it.",
        )
    check_output(config, images)
    return _run(config, images, progress).statistics


def _found(path: Path, *, overwrite: bool) -> Origin | None:
    """Return the origin of existing statistics; None if there are none, or some that cannot be read may be replaced."""
    try:
        return load_statistics(path).origin if path.is_file() else None
    except CheckpointError:
        if overwrite:
            return None
        raise


def _is_origin(found: Origin, config: CalibrateConfig, images: Sequence[Path]) -> bool:
    """Return whether statistics have the origin that measuring would give them."""
    settings = _settings(config)
    with open_checkpoint(config.tuned_model_path) as tuned:
        lbm = resolve_config(tuned, config_path=config.config_path)
        return found == Origin(
            tuned=fingerprint(tuned.component()).digest,
            around=around(tuned, lbm),
            images=digests_of(images).together,
            count=len(images),
            schedule=schedule_of(lbm, settings.timesteps),
            probes=settings.probes_for(len(images)),
            size=settings.size,
            seed=settings.seed,
            dense_up_to=settings.dense_up_to,
            sketch_rank=settings.sketch_rank,
            dtype=dtype_name(dtype_of(config.torch_dtype)),
            conv_dense_up_to=settings.conv_dense_up_to,
        )


def collected(
    config: CalibrateConfig, tuned: Checkpoint, images: Sequence[Path], partial: PartialFile | None, progress: Progress
) -> Statistics:
    """Measure the statistics of an open checkpoint.

    Args:
        partial: file to which the sums are saved periodically.
    """
    device = resolve_device(config.device, fp64="the sums need")
    settings, dtype = _settings(config), dtype_of(config.torch_dtype)
    digests = digests_of(images)
    progress.start(0, "loading the tuned model")
    model = load_model(tuned, config_path=config.config_path, device=device, dtype=dtype)
    statistics = collect(
        model,
        images,
        settings,
        tuned=fingerprint(tuned.component()).digest,
        around=around(tuned, model.config),
        digests=digests,
        partial=partial,
        progress=progress,
    )
    if dtype != torch.float32:  # LoRAs are run in fp32
        progress.start(0, "loading the tuned model in fp32")
        del model
        model = load_model(tuned, config_path=config.config_path, device=device, dtype=torch.float32, is_streamed=True)
    return with_checks(statistics, model, images, progress)


def _settings(config: CalibrateConfig) -> CalibrationSettings:
    return CalibrationSettings(
        timesteps=config.timesteps,
        probes=config.probes,
        size=config.size,
        seed=config.seed,
        dense_up_to=config.dense_up_to,
        sketch_rank=config.sketch_rank,
        conv_dense_up_to=config.conv_dense_up_to,
    )


def chosen_images(config: CalibrateConfig, found: Sequence[Path]) -> tuple[Path, ...]:
    """Return the images to use among those found."""
    if config.count is None:
        return tuple(found)
    if not 1 <= config.count <= len(found):
        raise ConfigError(
            Option("count"), f" must be between 1 and {len(found)}, the number of images, got {config.count}."
        )
    return tuple(found[index * len(found) // config.count] for index in range(config.count))


def check_output(config: CalibrateConfig, images: Sequence[Path]) -> None:
    """Refuse an output that cannot be written, that is an input, or that is a file of somebody else."""
    if config.save_to.suffix != ".safetensors":
        raise OutputError(Option("save_to"), f" {config.save_to}: statistics are a .safetensors file.")
    planned(config, images).check()


def planned(config: CalibrateConfig, images: Sequence[Path]) -> Outputs:
    """Return what the command reads and writes."""
    outputs = Outputs(overwrite=config.overwrite)
    outputs.reads(config.tuned_model_path, config.config_path, *images)
    outputs.writes(config.save_to)
    return outputs.writes(PartialFile(config.save_to).path, "the file of unfinished sums")


def _result(config: CalibrateConfig, statistics: Statistics) -> CalibrateResult:
    origin = statistics.origin
    return CalibrateResult(
        statistics=config.save_to,
        nbytes=written_bytes(config.save_to),
        layers=len(statistics),
        moments=len(statistics.inputs) + len(statistics.outputs),
        images=origin.count,
        timesteps=tuple(timestep for timestep, _ in origin.schedule),
        probes=origin.probes,
    )
