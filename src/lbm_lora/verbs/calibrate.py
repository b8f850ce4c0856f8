"""Measure the effect of errors in each layer on a tuned model's output: the verb `calibrate`."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lbm_lora.choices import CONV_DENSE_UP_TO, DENSE_UP_TO, SKETCH_RANK
from lbm_lora.errors import ConfigError, Option, OutputError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    ADVANCED,
    HIDDEN,
    ConfigPath,
    Count,
    Device,
    FlagName,
    FloatOrBf16,
    Network,
    Output,
    Overwrite,
    Pattern,
    Probes,
    Samples,
    Seed,
    Several,
    Timesteps,
    WorkSize,
)
from lbm_lora.verbs.verb import verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from lbm_lora.calibration import Calibration, CalibrationSettings, Statistics
    from lbm_lora.checkpoint import CheckpointLike
    from lbm_lora.fidelity.network import Run


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


def _text(result: CalibrateResult, _: bool) -> str:
    """Return the measurements, and the images they were made on."""
    from lbm_lora.report.wording import plural
    from lbm_lora.verbs.lines import file_lines, paragraphs

    timesteps = ", ".join(f"{timestep:g}" for timestep in result.timesteps)
    measured = (
        f"Measured {plural(result.layers, 'layer')} on {plural(result.images, 'image')} at timesteps {timesteps}, "
        f"{plural(result.probes, 'probe')} each: {plural(result.moments, 'second moment')}."
    )
    return paragraphs(measured, file_lines(result.statistics))


@verb(
    "measure which errors a tuned model's output is sensitive to",
    examples=(
        "lbm-lora calibrate --tuned_model_path tuned.safetensors --images photos --save_to statistics.safetensors",
    ),
    text=_text,
)
def calibrate(
    tuned: Annotated[Network, FlagName("tuned_model_path")],
    images: Samples,
    *,
    overwrite: Overwrite = False,
    save_to: Output = None,
    count: Count | None = None,
    size: WorkSize = None,
    device: Device = "auto",
    timesteps: Timesteps = (),
    probes: Annotated[Probes | None, ADVANCED] = None,
    seed: Annotated[Seed, ADVANCED] = 0,
    dense_up_to: Annotated[Seed, ADVANCED] = DENSE_UP_TO,
    sketch_rank: Annotated[Seed, ADVANCED] = SKETCH_RANK,
    conv_dense_up_to: Annotated[Seed, ADVANCED] = CONV_DENSE_UP_TO,
    torch_dtype: Annotated[FloatOrBf16, ADVANCED] = "bf16",
    config_path: ConfigPath = None,
    names: Annotated[Several[Pattern], HIDDEN] = (),
    progress: Progress = SILENT,
) -> "tuple[Statistics, CalibrateResult]":
    """Measure on images which errors a tuned model's output is sensitive to; extract then spends its bytes on those.

    Args:
        tuned: The fine-tuned checkpoint to measure; may be user/repo on the hub.
        images: Source images of the kind that the model is used on: images, folders or quoted globs
            ('pairs/*.source.png').
        save_to: Write the statistics here: a .safetensors file.
        count: Use only this many images, evenly spread over the sorted list. Default: all of them.
        timesteps: Measure only at these of the trained timesteps. Default: all of them, weighted by their probability.
        probes: Measure this many random directions of the output per image and timestep. More are slower and more
            accurate. Default: 4 for fewer than 16 images, else 1.
        seed: Seed for the bridge noise, the probes and the sketches.
        dense_up_to: Keep the complete second moment for layer sides up to this width, and a sketch for wider ones.
            Higher: more memory and a larger file.
        sketch_rank: Columns of a sketch. 0: keep only the diagonal.
        conv_dense_up_to: Keep the complete second moment of the in * kh * kw inputs that a conv's kernel covers up to
            this many, and a sketch for more. 0: moments of the channels only, in a smaller file.
        torch_dtype: Run the networks in this precision. Sums are always fp32.
        names: Of a module, measure only these modules in it: part of a name, a glob, or re:REGEX. Default: all linear
            layers and 2D convs.

    Any other network is a module and a callable that runs it: `tuned` is then the tuned network, in evaluation mode,
    in fp32 or bf16, on any device. `images` yields the network's output for each sample, with its graph, in any shape:
    `def run(): for batch in data: yield module(**batch).last_hidden_state`. It is called several times and must yield
    the same samples in the same order; the first must call every layer. Embeddings, grouped convs,
    nn.MultiheadAttention and shared weights are not measured: their changes are stored dense. 1D and 3D convs always
    are.

    Returns:
        The statistics, for `extract(..., calibration=...)`.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from torch import nn

    from lbm_lora.calibration import Calibration, CalibrationSettings
    from lbm_lora.checkpoint import dtype_of
    from lbm_lora.files import written_bytes
    from lbm_lora.verbs.values import image_files, image_paths, several

    path = None if save_to is None else Path(save_to)
    if path is not None and path.suffix != ".safetensors":
        raise OutputError(Option("save_to"), f" {path}: statistics are a .safetensors file.")
    settings = CalibrationSettings(
        timesteps=several(timesteps),
        probes=probes,
        size=size,
        seed=seed,
        dense_up_to=dense_up_to,
        sketch_rank=sketch_rank,
        conv_dense_up_to=conv_dense_up_to,
    )
    if isinstance(tuned, nn.Module) or callable(images):
        if not isinstance(tuned, nn.Module) or not callable(images):
            raise ConfigError("a module needs a callable that runs it; a checkpoint needs images.")
        for name, value in (("count", count), ("size", size), ("timesteps", timesteps), ("config_path", config_path)):
            if value:
                raise ConfigError(Option(name), " is for a checkpoint and images, not for a module.")
        statistics = _of_network(tuned, images, settings, several(names), path, overwrite, progress)
    else:
        if names:
            raise ConfigError("names is for a module, not for a checkpoint and images.")
        with ExitStack() as stack:
            sources = image_paths(stack.enter_context(image_files(images)))
            how = Calibration(
                images=chosen_images(sources, count),
                settings=settings,
                dtype=dtype_of(str(torch_dtype)),
                device=device,
                config_path=None if config_path is None else Path(config_path),
            )
            statistics = _of_checkpoint(tuned, how, path, overwrite, progress)
    origin = statistics.origin
    return statistics, CalibrateResult(
        statistics=path or Path("statistics.safetensors"),
        nbytes=0 if path is None else written_bytes(path),
        layers=len(statistics),
        moments=len(statistics.inputs) + len(statistics.outputs),
        images=origin.count,
        timesteps=tuple(timestep for timestep, _ in origin.schedule),
        probes=origin.probes,
    )


def chosen_images(images: "Sequence[Path]", count: int | None) -> "Sequence[Path]":
    """Return so many of the images, evenly spread; all of them for None."""
    if count is None:
        return images
    if not 1 <= count <= len(images):
        raise ConfigError(Option("count"), f" must be between 1 and {len(images)}, the number of images, got {count}.")
    return [images[index * len(images) // count] for index in range(count)]


def _of_checkpoint(
    tuned: "CheckpointLike", how: "Calibration", path: Path | None, overwrite: bool, progress: Progress
) -> "Statistics":
    from lbm_lora.calibration import plan_statistics
    from lbm_lora.files import Outputs
    from lbm_lora.hub import open_checkpoint
    from lbm_lora.verbs.values import inputs

    if path is not None:
        read = Outputs(overwrite=overwrite).reads(*inputs(tuned), how.config_path, *how.images)
        plan_statistics(read, path).check()
    with open_checkpoint(tuned, label="tuned state dict") as opened:
        if path is None:
            return how.measure(opened, None, progress)
        return how.measure_to(path, opened, overwrite=overwrite, progress=progress)


def _of_network(
    module: "nn.Module",
    run: "Run",
    settings: "CalibrationSettings",
    names: "Sequence[str]",
    path: Path | None,
    overwrite: bool,
    progress: Progress,
) -> "Statistics":
    from lbm_lora.calibration import collect_network, save_statistics
    from lbm_lora.files import Outputs

    if path is not None:
        Outputs(overwrite=overwrite).writes(path).check()
    statistics = collect_network(module, run, settings, names=names, progress=progress)
    if path is not None:
        save_statistics(statistics, path)
    return statistics
