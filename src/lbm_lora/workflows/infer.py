"""Translate images with an LBM checkpoint and LoRAs: the verb `infer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lbm_lora.apply import AppliedAdapter, ScaledAdapter
from lbm_lora.checkpoint import dtype_name, dtype_of, open_checkpoint
from lbm_lora.configs.infer import InferConfig
from lbm_lora.errors import ConfigError, Option
from lbm_lora.imaging.grids import comparison_grid, tile
from lbm_lora.imaging.image_file import read_image, write_copy, write_image
from lbm_lora.inference.jobs import Job, plan_jobs, translations
from lbm_lora.inference.options import put_in, read_adapters, translate_settings
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.schedule import check_steps
from lbm_lora.progress import SILENT, Progress
from lbm_lora.workflows.base import ensure_base

Columns = dict[str, list[Image.Image]]
"""Label -> one tile for each job: the columns of the side-by-side images."""


@dataclass(frozen=True, kw_only=True)
class TranslatedImage:
    """One image that was written."""

    source: Path
    output: Path
    comparison: Path | None
    """The side-by-side image of --compare."""
    source_copy: Path | None
    """The copy of the source of --save_input, where it was written."""
    width: int
    """Of source and output, pixels."""
    height: int
    model_width: int
    """Of what the model worked on, pixels."""
    model_height: int
    seconds: float
    """Reading, networks and stretching; without the writing."""


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """The images that were written, and what of each LoRA was applied."""

    outputs: tuple[TranslatedImage, ...]
    adapters: tuple[AppliedAdapter, ...]
    device: str
    dtype: str


def run(config: InferConfig, progress: Progress = SILENT) -> InferResult:
    """Translate every source and write the results. All paths, LoRAs and options are checked first.

    Raises:
        InputError: of the kind that fits; see `lbm_lora.errors`.
    """
    jobs = _plan(config)
    base = ensure_base(
        config.base, backbone_signature=config.backbone_signature, config_path=config.config_path, progress=progress
    )
    with open_checkpoint(base) as checkpoint:
        adapters, applied = read_adapters(config, checkpoint, progress)
    model = _load(config, base, "base", progress)
    check_steps(model.config, config.num_inference_steps)
    columns = _columns_without(config, jobs, model, adapters, progress)
    put_in(config, model, adapters)
    outputs, tiles = _write_all(config, jobs, model, progress)
    columns["with LoRA" if adapters else "base"] = tiles
    result = InferResult(outputs=outputs, adapters=applied, device=str(model.device), dtype=dtype_name(model.dtype))
    del model  # so that the tuned one does not stand beside it in memory
    _write_comparisons(config, jobs, columns, progress)
    return result


def _plan(config: InferConfig) -> list[Job]:
    if config.tuned_model_path is not None and not config.compare:
        raise ConfigError(
            Option("tuned_model_path"), " is only used with ", Option("compare"), ". Add it, or leave the path out."
        )
    inputs = [*config.input_files, *([config.tuned_model_path] if config.tuned_model_path else [])]
    return plan_jobs(
        config.source_image,
        config.output_path,
        mask=config.mask,
        compare=config.compare,
        copy=config.save_input,
        inputs=inputs,
    )


def _load(config: InferConfig, path: Path, what: str, progress: Progress) -> LBMModel:
    progress.start(0, f"loading the {what} model")
    dtype = dtype_of(config.torch_dtype)
    return load_model(path, config_path=config.config_path, device=config.device, dtype=dtype)


def _columns_without(
    config: InferConfig,
    jobs: Sequence[Job],
    model: LBMModel,
    adapters: Sequence[ScaledAdapter],
    progress: Progress,
) -> Columns:
    """The columns of --compare before the LoRAs are in: the sources, and what the base makes of them."""
    columns: Columns = {}
    if config.compare:
        columns["source"] = [tile(read_image(job.source)) for job in jobs]
        if adapters:
            columns["base"] = _tiles(config, jobs, model, "translating with the base", progress)
    return columns


def _tiles(
    config: InferConfig, jobs: Sequence[Job], model: LBMModel, what: str, progress: Progress
) -> list[Image.Image]:
    return [tile(made.image) for made in translations(model, jobs, translate_settings(config), progress, what)]


def _write_all(
    config: InferConfig, jobs: Sequence[Job], model: LBMModel, progress: Progress
) -> tuple[tuple[TranslatedImage, ...], list[Image.Image]]:
    """Translate and write every job; with --compare also the tiles for it."""
    outputs: list[TranslatedImage] = []
    tiles: list[Image.Image] = []
    inputs = [path for job in jobs for path in (job.source, job.mask) if path is not None]
    made = translations(model, jobs, translate_settings(config), progress, "translating")
    for job, translation in zip(jobs, made, strict=True):
        write_image(translation.image, job.output, inputs=[job.source])
        if config.compare:
            tiles.append(tile(translation.image))
        copied = job.copy is not None and write_copy(read_image(job.source), job.copy, inputs=inputs)
        outputs.append(
            TranslatedImage(
                source=job.source,
                output=job.output,
                comparison=job.comparison,
                source_copy=job.copy if copied else None,
                width=translation.image.width,
                height=translation.image.height,
                model_width=translation.model_size[0],
                model_height=translation.model_size[1],
                seconds=translation.seconds,
            )
        )
    return tuple(outputs), tiles


def _write_comparisons(config: InferConfig, jobs: Sequence[Job], columns: Columns, progress: Progress) -> None:
    """The side-by-side images, after the tuned model's column where one is asked for."""
    if config.tuned_model_path is not None:
        tuned = _load(config, config.tuned_model_path, "tuned", progress)
        columns["tuned"] = _tiles(config, jobs, tuned, "translating with the tuned model", progress)
    for index, job in enumerate(jobs):
        if job.comparison is not None:
            row = [tiles[index] for tiles in columns.values()]
            write_image(comparison_grid(list(columns), [row]), job.comparison, inputs=[job.source])
