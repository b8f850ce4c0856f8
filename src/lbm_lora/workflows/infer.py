"""Translate images with an LBM checkpoint and LoRAs: the verb `infer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.adapter import Adapter
from lbm_lora.apply import AppliedAdapter
from lbm_lora.checkpoint import CheckpointLike, dtype_name, dtype_of, open_checkpoint
from lbm_lora.configs.infer import InferConfig
from lbm_lora.errors import ConfigError, ImageError, Option, OutputError, QualityError, listing
from lbm_lora.files import Outputs, together
from lbm_lora.hub import localized
from lbm_lora.imaging.buckets import warn_of_size
from lbm_lora.imaging.image_file import RESULT, SIDE_BY_SIDE, read_image, write_copy, write_image
from lbm_lora.inference.jobs import FailedImage, Failures, Job, JobPlan, plan_jobs, translations
from lbm_lora.inference.tiles import Columns, Tiles
from lbm_lora.inference.translate import put_in, read_adapters, translate_settings
from lbm_lora.model.device import resolve_device
from lbm_lora.model.make_base import ensure_base, planned_missing
from lbm_lora.model.names import check_shapes, checkpoint_shapes
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.model.resolve import resolve_config
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class TranslatedImage:
    """One written image."""

    source: Path
    output: Path
    comparison: Path | None
    """Path of the side-by-side image of --compare."""
    source_copy: Path | None
    """Path of the copy of the source with --save_input, if it was written."""
    width: int
    """Size of source and output, in pixels."""
    height: int
    model_width: int
    """Size that the model worked at, in pixels."""
    model_height: int
    seconds: float
    """Seconds for reading, networks and stretching, without writing."""


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """Written images, failed images, and how much of each LoRA was applied."""

    outputs: tuple[TranslatedImage, ...]
    failed: tuple[FailedImage, ...]
    present: int
    """Images skipped because their outputs existed: --skip_existing."""
    adapters: tuple[AppliedAdapter, ...]
    device: str
    dtype: str

    @property
    def failures(self) -> tuple[QualityError, ...]:
        """A sentence on why the batch is incomplete."""
        if not self.failed:
            return ()
        failed = dict.fromkeys(image.source for image in self.failed)
        total = len({made.source for made in self.outputs} | failed.keys()) + self.present
        names = listing(dict.fromkeys(source.name for source in failed))
        return (QualityError(f"{len(failed)} of {total} images failed: {names}."),)


def run(config: InferConfig, progress: Progress = SILENT) -> InferResult:
    """Translate every source and write the results. All paths, LoRAs and options are checked first.

    An image that cannot be read or translated is skipped and listed in the result, unless it is the only one.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    config = localized(config, progress)
    batch = plan(config, config.source_image, config.mask)
    if not batch.jobs:
        device, dtype = str(resolve_device(config.device)), dtype_name(dtype_of(config.torch_dtype))
        return InferResult(outputs=(), failed=(), present=batch.present, adapters=(), device=device, dtype=dtype)
    base = ensure_base(
        config.base,
        backbone_signature=config.backbone_signature,
        config_path=config.config_path,
        overwrite=config.overwrite,
        progress=progress,
    )
    return translated(config, batch, base, config.lora_path, config.tuned_model_path, progress)


run_infer = run
"""Its name on the public page."""


def translated(
    config: InferConfig,
    batch: JobPlan,
    base: CheckpointLike,
    loras: Sequence[Path | Adapter],
    tuned: CheckpointLike | None,
    progress: Progress,
) -> InferResult:
    """Translate every job with a checkpoint and LoRAs, and write the results.

    Args:
        batch: batch from `plan`, with at least one job.
        tuned: checkpoint for the last column of the side-by-side images.
    """
    with open_checkpoint(base) as checkpoint:
        adapters, applied = read_adapters(config, checkpoint, progress, loras)
    for model in (base, tuned):
        if model is not None:
            _check_shapes(config, model)
    failures = Failures(len(batch.jobs) + batch.present, is_fatal=config.fail_fast)
    columns = Columns(_label(applied))
    if config.compare:
        columns.left["source"] = _source_tiles(batch.jobs, failures)
    if tuned is not None:  # before the base, so that both are not in memory at the same time
        columns.right["tuned"] = _tuned_tiles(config, batch.jobs, tuned, failures, progress)
    pipe = _load(config, base, "base", progress)
    warn_of_size(config.size, pipe.size)
    if config.compare and adapters:
        columns.left["base"] = _tiles(config, batch.jobs, pipe, failures, progress, "translating with the base")
    put_in(config, pipe, adapters)
    outputs = _write_all(config, batch.jobs, pipe, columns, failures, progress)
    return InferResult(
        outputs=tuple(outputs),
        failed=tuple(failures.images),
        present=batch.present,
        adapters=applied,
        device=str(pipe.device),
        dtype=dtype_name(pipe.unet.dtype),
    )


def plan(
    config: InferConfig,
    images: str | Sequence[str],
    mask: str | Sequence[str] | None,
    *,
    opened: Sequence[Path] = (),
) -> JobPlan:
    """Return the paths to read and write, checked before a model is loaded; see `plan_jobs`.

    Args:
        opened: files of images that were opened in memory.
    """
    if config.tuned_model_path is not None and not config.compare:
        raise ConfigError(
            Option("tuned_model_path"), " is only used with ", Option("compare"), ". Add it, or leave the path out."
        )
    files = Outputs(overwrite=config.overwrite)
    files.then(
        planned_missing(config.base, backbone_signature=config.backbone_signature, config_path=config.config_path)
    )
    files.then(Outputs().reads(*config.input_files, config.tuned_model_path, *opened))
    return plan_jobs(
        images,
        config.output_path,
        mask=mask,
        compare=config.compare,
        copy=config.save_input,
        files=files,
        skip_existing=config.skip_existing,
    )


def _check_shapes(config: InferConfig, model: CheckpointLike) -> None:
    """Check a model before another one is run."""
    with open_checkpoint(model) as checkpoint:
        lbm = resolve_config(checkpoint, config_path=config.config_path)
        check_shapes(checkpoint.specs, checkpoint_shapes(lbm), where=checkpoint.path)


def _load(config: InferConfig, checkpoint: CheckpointLike, what: str, progress: Progress) -> LBMPipeline:
    progress.start(0, f"loading the {what} model")
    pipe = LBMPipeline.from_checkpoint(
        checkpoint, config_path=config.config_path, device=config.device, torch_dtype=config.torch_dtype
    )
    pipe.check_steps(config.num_inference_steps)
    return pipe


def _tuned_tiles(
    config: InferConfig, jobs: Sequence[Job], tuned: CheckpointLike, failures: Failures, progress: Progress
) -> Tiles:
    model = _load(config, tuned, "tuned", progress)
    return _tiles(config, jobs, model, failures, progress, "translating with the tuned model")


def _label(applied: Sequence[AppliedAdapter]) -> str:
    """Return the heading of the column with the LoRAs: `with LoRA`, or `LoRA x 0.5` if one is scaled."""
    scales = [lora.lora_scale for lora in applied]
    if all(scale == 1 for scale in scales):
        return "with LoRA" if scales else "base"
    return " + ".join(f"LoRA x {scale}" if isinstance(scale, str) else f"LoRA x {scale:g}" for scale in scales)


def _source_tiles(jobs: Sequence[Job], failures: Failures) -> Tiles:
    tiles = Tiles()
    for job in jobs:
        try:
            tiles.add(job.output, read_image(job.source))
        except ImageError as error:
            failures.add(job, error)
    return tiles


def _tiles(
    config: InferConfig, jobs: Sequence[Job], pipe: LBMPipeline, failures: Failures, progress: Progress, what: str
) -> Tiles:
    tiles = Tiles()
    for job, translation in translations(pipe, jobs, translate_settings(config), failures, progress, what):
        tiles.add(job.output, translation.image)
    return tiles


def _write_all(
    config: InferConfig,
    jobs: Sequence[Job],
    pipe: LBMPipeline,
    columns: Columns,
    failures: Failures,
    progress: Progress,
) -> list[TranslatedImage]:
    """Translate and write every job: the result, the side-by-side image and the copy of the source appear together."""
    outputs: list[TranslatedImage] = []
    inputs = [path for job in jobs for path in (job.source, job.mask) if path is not None]
    for job, translation in translations(pipe, jobs, translate_settings(config), failures, progress, "translating"):
        try:
            image = read_image(job.output) if job.keeps_output else translation.image
        except ImageError as error:  # of an earlier run, or of somebody else
            failures.add(job, error)
            continue
        try:
            with together():
                if not job.keeps_output:
                    write_image(image, job.output, mark=RESULT)
                if job.comparison is not None:
                    write_image(columns.beside(job.output, image), job.comparison, mark=SIDE_BY_SIDE)
                copied = job.copy is not None and write_copy(translation.source, job.copy, inputs=inputs)
        except OutputError as error:
            raise OutputError(*error.args, failures.so_far()) from None
        failures.written += 1
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
    return outputs
