"""Translate pictures with an LBM checkpoint and LoRAs: the verb `infer`."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lbm_lora.apply import ScaledAdapter
from lbm_lora.checkpoint import dtype_name, dtype_of, open_checkpoint
from lbm_lora.imaging.files import read_image, write_image
from lbm_lora.imaging.grids import comparison_grid, tile
from lbm_lora.infer.jobs import Job, plan_jobs, translations
from lbm_lora.infer.pipeline import check_steps
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.progress import SILENT, Progress
from lbm_lora.workflows.extras import need_packages
from lbm_lora.workflows.infer_config import InferConfig, check_flags
from lbm_lora.workflows.infer_model import base_path, input_files, put_in, read_adapters, settings_of
from lbm_lora.workflows.infer_result import InferResult, TranslatedImage

__all__ = ["InferConfig", "InferResult", "run"]

_FOR_SHARDS = ("lightning", "webdataset", "filelock")

Columns = dict[str, list[Image.Image]]
"""Label -> one tile for each job: the columns of the side-by-side pictures."""


def run(config: InferConfig, progress: Progress = SILENT) -> InferResult:
    """Translate every source and write the results. All paths, LoRAs and options are checked first.

    Raises:
        MissingExtraError: shards, and a package that they need is not installed.
        InputError: of the kind that fits; see `lbm_lora.errors`.
    """
    check_flags(config)
    if config.source_image is None:
        need_packages("translating shards", _FOR_SHARDS, "train")
        from lbm_lora.workflows.infer_shards import translate_shards

        return translate_shards(config, progress)
    jobs = _plan(config, config.source_image)
    base = base_path(config, progress)
    with open_checkpoint(base) as checkpoint:
        adapters, applied = read_adapters(config, checkpoint, progress)
    model = _load(config, base, "base", progress)
    check_steps(model.config, config.num_inference_steps)
    columns = _columns_without(config, jobs, model, adapters, progress)
    put_in(model, adapters, config.mode)
    outputs, tiles = _write_all(config, jobs, model, progress)
    columns["with LoRA" if adapters else "base"] = tiles
    result = InferResult(outputs=outputs, adapters=applied, device=str(model.device), dtype=dtype_name(model.dtype))
    del model  # so that the tuned one does not stand beside it in memory
    _write_comparisons(config, jobs, columns, progress)
    return result


def _plan(config: InferConfig, source_image: str) -> list[Job]:
    return plan_jobs(
        source_image, config.output_path, mask=config.mask, compare=config.compare, inputs=input_files(config)
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
    return [tile(made.picture) for made in translations(model, jobs, settings_of(config), progress, what)]


def _write_all(
    config: InferConfig, jobs: Sequence[Job], model: LBMModel, progress: Progress
) -> tuple[tuple[TranslatedImage, ...], list[Image.Image]]:
    """Translate and write every job; with --compare also the tiles for it."""
    outputs: list[TranslatedImage] = []
    tiles: list[Image.Image] = []
    made = translations(model, jobs, settings_of(config), progress, "translating")
    for job, translation in zip(jobs, made, strict=True):
        write_image(translation.picture, job.output, inputs=[job.source])
        if config.compare:
            tiles.append(tile(translation.picture))
        outputs.append(
            TranslatedImage(
                source=job.source,
                output=job.output,
                comparison=job.comparison,
                width=translation.picture.width,
                height=translation.picture.height,
                model_width=translation.model_size[0],
                model_height=translation.model_size[1],
                seconds=translation.seconds,
            )
        )
    return tuple(outputs), tiles


def _write_comparisons(config: InferConfig, jobs: Sequence[Job], columns: Columns, progress: Progress) -> None:
    """The side-by-side pictures, after the tuned model's column where one is asked for."""
    if config.tuned_model_path is not None:
        tuned = _load(config, config.tuned_model_path, "tuned", progress)
        columns["tuned"] = _tiles(config, jobs, tuned, "translating with the tuned model", progress)
    for index, job in enumerate(jobs):
        if job.comparison is not None:
            row = [tiles[index] for tiles in columns.values()]
            write_image(comparison_grid(list(columns), [row]), job.comparison, inputs=[job.source])
