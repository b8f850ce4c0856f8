"""Translate images with an LBM checkpoint and LoRAs: the verb `infer`."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lbm_lora.errors import ConfigError, ImageError, Option, OutputError, QualityError, listing
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    AllowOtherBase,
    AllowUnmatched,
    AnyBase,
    AnyDevice,
    AttentionOnly,
    Backbone,
    ConfigPath,
    Crop,
    FlagName,
    ImageOutput,
    Images,
    ImageSeed,
    ImageSteps,
    KeepDetail,
    LoraAlphaIs,
    LoraMode,
    Loras,
    LoraScale,
    Mask,
    MatchColor,
    NetworkPrecision,
    Overwrite,
    SamplePosterior,
    Several,
    Tuned,
    VaeTiling,
    WorkSize,
)
from lbm_lora.verbs.verb import EVERYDAY, verb

if TYPE_CHECKING:
    from lbm_lora.apply import AppliedAdapter
    from lbm_lora.checkpoint import Checkpoint, CheckpointLike
    from lbm_lora.inference.jobs import FailedImage, Failures, Job, Translation
    from lbm_lora.inference.tiles import Columns, Tiles


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
    failed: "tuple[FailedImage, ...]"
    present: int
    """Images skipped because their outputs existed: --skip_existing."""
    adapters: "tuple[AppliedAdapter, ...]"
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


def _text(result: InferResult, _: bool) -> str:
    """Return each written image, and each failed one with its reason."""
    from lbm_lora.report.wording import plural, printable
    from lbm_lora.verbs.lines import paragraphs

    lines = [printable(line) for made in result.outputs for line in _lines_of(made)]
    head = f"Translated {plural(len(result.outputs), 'image')} on {result.device} in {result.dtype}"
    if result.present:
        head += f"; {plural(result.present, 'image')} already existed"
    failed = [printable(f"  {image.reason}") for image in result.failed]
    return paragraphs(
        "\n".join([f"{head}:", *lines]) if lines else f"{head}.",
        "\n".join([f"{plural(len(failed), 'image')} failed:", *failed]) if failed else "",
    )


def _lines_of(made: TranslatedImage) -> list[str]:
    lines = [
        f"  {made.source.name} {made.width}x{made.height} -> {made.output} "
        f"(model {made.model_width}x{made.model_height}, {made.seconds:.1f} s)"
    ]
    if made.comparison:
        lines.append(f"    side by side: {made.comparison}")
    if made.source_copy:
        lines.append(f"    source: {made.source_copy}")
    return lines


@verb(
    "translate images with a checkpoint and LoRAs",
    group=EVERYDAY,
    examples=(
        "lbm-lora infer --base_model_path base.safetensors --lora_path lora.safetensors --source_image photo.jpg "
        "--output_path relit.png",
        "lbm-lora infer --base_model_path base.safetensors --lora_path a.safetensors b.safetensors --lora_scale 0.8 "
        "0.3 --source_image photos --output_path relit --compare",
    ),
    text=_text,
)
def infer(
    base: AnyBase,
    images: Annotated[Images, FlagName("source_image")],
    output_path: ImageOutput,
    lora: Loras = (),
    *,
    overwrite: Overwrite = False,
    lora_scale: Several[LoraScale] = (1.0,),
    lora_alpha_is: LoraAlphaIs = "auto",
    crop: Crop = False,
    num_inference_steps: ImageSteps = 1,
    seed: ImageSeed = 0,
    size: WorkSize = None,
    keep_detail: KeepDetail = 0.0,
    match_color: MatchColor = 0.0,
    mode: LoraMode = "fused",
    device: AnyDevice = "auto",
    torch_dtype: NetworkPrecision = "bf16",
    sample_posterior: SamplePosterior = False,
    vae_tiling: VaeTiling = "auto",
    attention_only: AttentionOnly = False,
    allow_other_base: AllowOtherBase = False,
    allow_unmatched: AllowUnmatched = False,
    config_path: ConfigPath = None,
    backbone_signature: Backbone = None,
    mask: Mask = None,
    compare: bool = False,
    save_input: bool = False,
    tuned: Tuned | None = None,
    skip_existing: bool = False,
    fail_fast: bool = False,
    progress: Progress = SILENT,
) -> tuple[InferResult, InferResult]:
    """Translate images with an LBM checkpoint and any number of LoRAs. For WebDataset shards see
    `lbm-lora infer --source_shards --help`.

    Args:
        images: Image, folder of images, or quoted glob ('photos/*.jpg').
        output_path: Write to this file, or to this folder; several images need a folder. The extension chooses the
            format.
        mask: Mask, or a folder with a mask of the same name for each image: white takes the result, black keeps the
            source.
        compare: Also write NAME_compare: source, base, with LoRA and tuned side by side.
        save_input: Also write NAME_input: the source as it was read, next to its result. Other files of that name are
            kept.
        tuned: Add a column of this fine-tuned checkpoint to `compare`.
        skip_existing: Skip images whose output already exists, even from other settings. With new settings, use
            another folder.
        fail_fast: Stop at the first image that fails. Default: continue, and list the failed images at the end.

    Returns:
        The files that were written, and what of each LoRA was applied. An image that cannot be read or translated is
        skipped and listed, unless it is the only one.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from lbm_lora.apply import fitting_adapters
    from lbm_lora.checkpoint import dtype_name, dtype_of
    from lbm_lora.files import Outputs
    from lbm_lora.hub import local_checkpoint, open_checkpoint
    from lbm_lora.imaging.buckets import warn_of_size
    from lbm_lora.inference.jobs import Failures, plan_jobs, translations
    from lbm_lora.inference.tiles import Columns, Tiles
    from lbm_lora.inference.translate import TranslateSettings, put_in
    from lbm_lora.model.device import resolve_device
    from lbm_lora.model.make_base import ensure_base, planned_missing
    from lbm_lora.model.pipeline import LBMPipeline
    from lbm_lora.verbs.values import image_files, inputs, listed, opened_files, several

    if tuned is not None and not compare:
        raise ConfigError(
            Option("tuned_model_path"), " is only used with ", Option("compare"), ". Add it, or leave the path out."
        )
    loras = listed(lora)
    if isinstance(base, str | Path):  # one that is made is no name on the hub
        base = Path(base) if backbone_signature else local_checkpoint(base, progress)
    making: dict[str, Any] = {
        "backbone_signature": backbone_signature,
        "config_path": None if config_path is None else Path(config_path),
    }
    settings = TranslateSettings(
        steps=num_inference_steps,
        seed=seed,
        size=size,
        keep_detail=keep_detail,
        match_color=match_color,
        sample_posterior=sample_posterior,
        vae_tiling=vae_tiling,
    )

    def load(checkpoint: "CheckpointLike", what: str) -> LBMPipeline:
        progress.start(0, f"loading the {what} model")
        pipe = LBMPipeline.from_checkpoint(checkpoint, config_path=config_path, device=device, torch_dtype=torch_dtype)
        pipe.check_steps(num_inference_steps)
        return pipe

    def tiles(pipe: LBMPipeline, what: str) -> Tiles:
        made = Tiles()
        for job, translation in translations(pipe, batch.jobs, settings, failures, progress, what):
            made.add(job.output, translation.image)
        return made

    with ExitStack() as stack:
        files = Outputs(overwrite=overwrite)
        if isinstance(base, Path):
            files.then(planned_missing(base, **making))
        files.then(Outputs().reads(*inputs(base, config_path, tuned, *loras), *opened_files(images, mask)))
        batch = plan_jobs(
            stack.enter_context(image_files(images)),
            str(output_path),
            mask=None if mask is None else stack.enter_context(image_files(mask)),
            compare=compare,
            copy=save_input,
            files=files,
            skip_existing=skip_existing,
        )
        if not batch.jobs:
            dtype = dtype_name(dtype_of(str(torch_dtype)))
            result = InferResult(
                outputs=(),
                failed=(),
                present=batch.present,
                adapters=(),
                device=str(resolve_device(device)),
                dtype=dtype,
            )
            return result, result
        if isinstance(base, Path):
            base = ensure_base(base, **making, overwrite=overwrite, progress=progress)
        checkpoint = stack.enter_context(open_checkpoint(base, label="base state dict"))
        adapters, applied = fitting_adapters(
            checkpoint.component(),
            loras,
            several(lora_scale),
            alpha_is=lora_alpha_is,
            crop=crop,
            attention_only=attention_only,
            allow_other_base=allow_other_base,
            allow_unmatched=allow_unmatched,
            progress=progress,
        )
        other = None
        if tuned is not None:
            other = stack.enter_context(open_checkpoint(tuned, label="tuned state dict"))
        for model in (checkpoint, other):  # both before one is run
            if model is not None:
                _check_shapes(model, making["config_path"])
        failures = Failures(len(batch.jobs) + batch.present, is_fatal=fail_fast)
        columns = Columns(_label(applied))
        if compare:
            columns.left["source"] = _source_tiles(batch.jobs, failures)
        if other is not None:  # before the base, so that both are not in memory at the same time
            columns.right["tuned"] = tiles(load(other, "tuned"), "translating with the tuned model")
        pipe = load(checkpoint, "base")
        warn_of_size(size, pipe.size)
        if compare and adapters:
            columns.left["base"] = tiles(pipe, "translating with the base")
        put_in(pipe, adapters, mode)
        sources = [path for job in batch.jobs for path in (job.source, job.mask) if path is not None]
        outputs: list[TranslatedImage] = []
        for job, made in translations(pipe, batch.jobs, settings, failures, progress, "translating"):
            outputs += _write(job, made, columns, failures, sources)
        result = InferResult(
            outputs=tuple(outputs),
            failed=tuple(failures.images),
            present=batch.present,
            adapters=applied,
            device=str(pipe.device),
            dtype=dtype_name(pipe.unet.dtype),
        )
    return result, result


def _check_shapes(checkpoint: "Checkpoint", config_path: Path | None) -> None:
    from lbm_lora.model.names import check_shapes, checkpoint_shapes
    from lbm_lora.model.resolve import resolve_config

    lbm = resolve_config(checkpoint, config_path=config_path)
    check_shapes(checkpoint.specs, checkpoint_shapes(lbm), where=checkpoint.path)


def _label(applied: "Sequence[AppliedAdapter]") -> str:
    """Return the heading of the column with the LoRAs: `with LoRA`, or `LoRA x 0.5` if one is scaled."""
    scales = [lora.lora_scale for lora in applied]
    if all(scale == 1 for scale in scales):
        return "with LoRA" if scales else "base"
    return " + ".join(f"LoRA x {scale}" if isinstance(scale, str) else f"LoRA x {scale:g}" for scale in scales)


def _source_tiles(jobs: "Sequence[Job]", failures: "Failures") -> "Tiles":
    from lbm_lora.imaging.image_file import read_image
    from lbm_lora.inference.tiles import Tiles

    tiles = Tiles()
    for job in jobs:
        try:
            tiles.add(job.output, read_image(job.source))
        except ImageError as error:
            failures.add(job, error)
    return tiles


def _write(
    job: "Job", made: "Translation", columns: "Columns", failures: "Failures", inputs: Sequence[Path]
) -> list[TranslatedImage]:
    """Write the result, the side-by-side image and the copy of the source, which appear together."""
    from lbm_lora.files import together
    from lbm_lora.imaging.image_file import RESULT, SIDE_BY_SIDE, read_image, write_copy, write_image

    try:
        image = read_image(job.output) if job.keeps_output else made.image
    except ImageError as error:  # of an earlier run, or of somebody else
        failures.add(job, error)
        return []
    try:
        with together():
            if not job.keeps_output:
                write_image(image, job.output, mark=RESULT)
            if job.comparison is not None:
                write_image(columns.beside(job.output, image), job.comparison, mark=SIDE_BY_SIDE)
            copied = job.copy is not None and write_copy(made.source, job.copy, inputs=inputs)
    except OutputError as error:
        raise OutputError(*error.args, failures.so_far()) from None
    failures.written += 1
    return [
        TranslatedImage(
            source=job.source,
            output=job.output,
            comparison=job.comparison,
            source_copy=job.copy if copied else None,
            width=made.image.width,
            height=made.image.height,
            model_width=made.model_size[0],
            model_height=made.model_size[1],
            seconds=made.seconds,
        )
    ]
