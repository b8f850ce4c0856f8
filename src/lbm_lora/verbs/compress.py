"""Make a small LoRA of a fine-tuned model in one step, and measure it in images: the verb `compress`."""

import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lbm_lora.errors import ConfigError, Option, OutputError, PairingError, plural
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    ADVANCED,
    POSITIONAL,
    Also,
    Count,
    Device,
    ExtractPrecision,
    File,
    Images,
    Named,
    OutputFolder,
    Overwrite,
    Precision,
    Seed,
)
from lbm_lora.verbs.validate import LORA, planned_report, validate
from lbm_lora.verbs.verb import START, verb, with_result

if TYPE_CHECKING:
    from lbm_lora.adapter.twins import Twin
    from lbm_lora.fidelity.outputs import VariantSummary
    from lbm_lora.model.baseline import BaselineReport
    from lbm_lora.report import Report

_HELD_OUT_EVERY = 4
_MOST_HELD_OUT = 8
_FRACTION = 50  # of the tuned checkpoint's bytes: the default size of a LoRA
_BASE_NAMES = ("exact_base.safetensors", "exact_base.ckpt")


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """The LoRA, its fidelity to the tuned model, and the paths of all files."""

    adapter: Path
    nbytes: int
    base: Path
    tuned_nbytes: int
    """Bytes of all tensors of the tuned checkpoint."""
    report: "Report"
    images: int
    """Images that were measured on."""
    seen_images: int
    """Images among them that the LoRA was calibrated on."""
    page: Path
    """The report as one HTML page."""
    comparison: Path
    """The side-by-side images."""
    statistics: Path
    """File of the calibration statistics."""
    twins: "tuple[Twin, ...]" = ()
    """The LoRA in other formats."""

    @property
    def with_lora(self) -> "VariantSummary":
        """One-step images of base + LoRA against the tuned model's."""
        return self._summary(LORA)

    @property
    def without(self) -> "VariantSummary":
        """The same for the base alone."""
        return self._summary("base")

    def _summary(self, variant: str) -> "VariantSummary":
        assert self.report.outputs is not None  # images are always measured
        return next(entry for entry in self.report.outputs.summary if entry.variant == variant)


def compress_text(result: CompressResult, _: bool) -> str:
    """Return lines for a reader who has never used a LoRA of an LBM."""
    from lbm_lora.report.wording import megabytes, printable

    base, lora = _quoted(result.base), _quoted(result.adapter)
    part = round(result.tuned_nbytes / result.nbytes)
    lines = [
        f"Made     {result.adapter}, {megabytes(result.nbytes)}: 1/{part} of the tuned checkpoint. {_contents(result)}",
        f"Quality  {_quality(result)}",
        f"See      {result.page} and {result.comparison}",
        f"Use      lbm-lora infer --base_model_path {base} --lora_path {lora} --source_image photo.jpg "
        "--output_path out.png",
        f'Python   import lbm_lora; pipe = lbm_lora.LBMPipeline.from_checkpoint("{result.base.as_posix()}"); '
        f'pipe.load_lora_weights("{result.adapter.as_posix()}"); pipe("photo.jpg").images[0].save("out.png")',
        f"ComfyUI  {_comfyui(result)}",
        *([f"Also     {', '.join(str(twin.path) for twin in result.twins)}"] if result.twins else []),
    ]
    return "\n".join(map(printable, lines))


def _comfyui(result: CompressResult) -> str:
    ours, stock = "The node Load LBM LoRA takes the LoRA as it is", "ComfyUI's own LoraLoaderModelOnly"
    made = next((twin.path for twin in result.twins if twin.format == "comfyui"), None)
    if made is not None:
        return f"{ours}, {stock} takes {made}."
    save_to = _quoted(result.adapter.with_suffix(".comfyui.safetensors"))
    return (
        f"{ours}; for {stock}: lbm-lora convert --lora_path {_quoted(result.adapter)} --to comfyui --save_to {save_to}"
    )


def _contents(result: CompressResult) -> str:
    from lbm_lora.adapter import Status

    weights = result.report.weights
    held = sum(weights.counts.get(status, 0) for status in (Status.LORA, Status.DENSE))
    left_out = weights.counts.get(Status.EXCLUDED, 0)
    text = f"It changes {held:,} of the denoiser's {weights.tensors:,} tensors"
    return f"{text}; {left_out:,} that matter least were left out to save bytes." if left_out else f"{text}."


def _quality(result: CompressResult) -> str:
    from lbm_lora.report.wording import decibel

    made, alone = result.with_lora, result.without
    images = plural(result.images, "image")
    seen = plural(result.seen_images, "of them", "of them") if result.seen_images < result.images else "all"
    on = f"{images}, {seen} calibrated on" if result.seen_images else f"{images} that it was not calibrated on"
    worst = f" ({decibel(made.worst_psnr)} dB for the worst of them)" if result.images > 1 else ""
    return (
        f"PSNR {decibel(made.mean_psnr)} dB to the tuned model's images{worst}, on {on}; the base alone has "
        f"{decibel(alone.mean_psnr)} dB."
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


@verb(
    "make a small LoRA of a model in one step, and measure it",
    group=START,
    examples=(
        "lbm-lora compress relighting --size 50MB --images photos",
        "lbm-lora compress tuned.safetensors --base_model_path base.safetensors --size 20MB --also comfyui",
    ),
    text=compress_text,
)
def compress(
    tuned: Annotated[File, Named("TUNED"), POSITIONAL],
    *,
    overwrite: Overwrite = False,
    size: Annotated[str | None, Named("SIZE")] = None,
    images: Images = (),
    output: OutputFolder = None,
    base_model_path: Annotated[File | None, Named("CHECKPOINT")] = None,
    backbone_signature: Annotated[str | None, Named("BACKBONE")] = None,
    device: Device = "auto",
    name: Annotated[str | None, Named("NAME"), ADVANCED] = None,
    calibration: Annotated[File | None, ADVANCED] = None,
    count: Annotated[Count, ADVANCED] = 16,
    save_precision: Annotated[ExtractPrecision, ADVANCED] = "auto",
    also: Also = (),
    seed: Annotated[Seed, ADVANCED] = 0,
    torch_dtype: Annotated[Precision, ADVANCED] = "float",
    progress: Progress = SILENT,
) -> tuple[CompressResult, CompressResult]:
    """Make a small LoRA of a fine-tuned model in one step: base, calibration, extraction, and comparison in images.

    Args:
        tuned: The fine-tuned checkpoint, or what holds it with its config.yaml: a folder, or user/repo on the hub.
        size: Largest size of the LoRA file (50MB, 800KB). Default: a fiftieth of the tuned checkpoint's size.
        images: Source images of the kind that the model is used on: images, folders or quoted globs. Every fourth one
            is held out for measuring, 8 at most. Default: the four photos bundled with the package.
        output: Write everything to this folder. Default: NAME_lora in the current folder.
        base_model_path: The base. Default: the exact_base.safetensors in the output folder, or next to the tuned
            checkpoint if that is given as a file. If there is none, it is made.
        backbone_signature: Make the base from this backbone: hub id, folder or file. Default: that of config.yaml, else
            SDXL on the hub.
        name: Name of the LoRA: NAME_lora.safetensors. Default: the checkpoint's name, or the folder's of a
            model.safetensors.
        calibration: Reuse these statistics of an earlier run (calibration.safetensors in its folder) to make another
            size without measuring again. `images` are then used only for the comparison.
        count: Calibrate on at most this many images, evenly spread over the given ones.
        save_precision: Precision of the LoRA file. auto gives each rank, bias and norm the bits that it is worth. Only
            lbm-lora reads auto and int8: `also` and `lbm-lora convert` make files for other programs.
        seed: Seed for the bridge noise.
        torch_dtype: Precision of the networks in the comparison. Below float, their rounding hides small differences.

    Returns:
        The LoRA, how close it comes to the tuned model, and where everything lies.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from lbm_lora import bundled
    from lbm_lora.calibration import Calibration, CalibrationSettings, plan_statistics
    from lbm_lora.files import Outputs, is_same, together
    from lbm_lora.hub import local_checkpoint, open_checkpoint
    from lbm_lora.model.make_base import BaseRecipe
    from lbm_lora.model.resolve import config_beside
    from lbm_lora.ranks import parse_nbytes
    from lbm_lora.verbs.calibrate import chosen_images
    from lbm_lora.verbs.extract import extract_several, planned_loras
    from lbm_lora.verbs.values import checked_image_paths, image_files, several

    if size is not None:
        parse_nbytes(size, "size")
    name = _name_of(tuned, name)
    folder = Path(output or f"{name}_lora")
    if is_same(folder, Path(tuned)):  # with the base, it would hold two checkpoints
        raise OutputError(Option("output"), f" {folder} is the folder of the checkpoint. Choose another one.")
    lora, statistics = folder / f"{name}_lora.safetensors", folder / "calibration.safetensors"
    tuned = local_checkpoint(tuned, progress)
    base = local_checkpoint(base_model_path, progress) if base_model_path else _base_beside(folder, tuned)
    with ExitStack() as stack:
        sources = stack.enter_context(image_files(images or bundled.PHOTOS))
        paths = checked_image_paths(sources)
        seen, measured_on = split_images(paths) if calibration is None else ((), paths[:_MOST_HELD_OUT])
        opened = stack.enter_context(open_checkpoint(tuned))
        nbytes = sum(spec.numel * spec.dtype.itemsize for spec in opened.specs.values())
        outputs = Outputs(overwrite=overwrite).reads(tuned, base, calibration, *paths)
        recipe = None
        if base is None:
            recipe = BaseRecipe(
                save_path=folder / _BASE_NAMES[0],
                config_path=config_beside(tuned),
                backbone_signature=backbone_signature,
                tuned=tuned,
                overwrite=overwrite,
            )
            outputs.then(recipe.outputs())
        if calibration is None:
            outputs.then(plan_statistics(Outputs(), statistics))
        outputs.then(planned_loras([lora], several(also))).then(planned_report(folder / "report", has_images=True))
        outputs.check()
        if recipe is not None:
            made = recipe.make(progress)
            base = made.base.safetensors
            assert made.baseline is not None  # a tuned checkpoint was given
            _check_base(base, made.baseline)
        else:
            assert base is not None
            _check_given_base(base, tuned, progress)
        if calibration is None:
            settings = CalibrationSettings(seed=seed)
            how = Calibration(images=chosen_images(seen, min(count, len(seen))), settings=settings, device=device)
            how.file_at(statistics, opened, overwrite=overwrite, progress=progress)
        else:
            statistics = Path(calibration)
        with together():  # an earlier LoRA stays with its report until the new ones are there
            _, extracted = with_result(extract_several)(
                base,
                tuned,
                save_to=lora,
                calibration=statistics,
                max_size=(size or f"{nbytes / _FRACTION / 1e6:.3g}MB",),
                save_precision=save_precision,
                also=also,
                device=device,
                overwrite=overwrite,
                progress=progress,
            )
            report, compared = with_result(validate)(
                base,
                tuned,
                lora,
                images=[str(path) for path in measured_on],
                report=folder / "report",
                num_inference_steps=(1,),
                seed=seed,
                device=device,
                torch_dtype=torch_dtype,
                overwrite=overwrite,
                progress=progress,
            )
    by_suffix = {path.suffix: path for path in compared.files}
    result = CompressResult(
        adapter=lora,
        nbytes=extracted.nbytes,
        base=base,
        tuned_nbytes=nbytes,
        report=report,
        images=len(measured_on),
        seen_images=len(compared.seen_images),
        page=by_suffix[".html"],
        comparison=by_suffix[".png"],
        statistics=statistics,
        twins=extracted.twins,
    )
    return result, result


def _name_of(tuned: Path | str, name: str | None) -> str:
    """Return the name for the files: by default that of the checkpoint, or of its folder or repository if that is more
    specific.
    """
    from lbm_lora.hub import hub_name

    if name is not None:
        if Path(name).name != name:
            raise ConfigError(Option("name"), f" {name} must be a file name, not a path.")
        return name
    on_hub = hub_name(tuned)
    if on_hub is not None:
        return on_hub.repo.partition("/")[2] if on_hub.stem == "model" else on_hub.stem
    path = Path(os.path.abspath(tuned))  # noqa: PTH100  as it was given: a link may lead to `v3`, or to a hash
    if path.is_dir():
        return path.name
    stem = Path(path.name.removesuffix(".index.json")).stem
    return path.parent.name if stem.partition(".")[0] == "model" else stem


def _base_beside(folder: Path, tuned: Path) -> Path | None:
    """Return the base in the folder, else the one next to a checkpoint, or None if there is none."""
    places = (folder, tuned if tuned.is_dir() else tuned.parent)
    candidates = [place / name for place in places for name in _BASE_NAMES]
    return next((path for path in candidates if path.is_file()), None)


def split_images(images: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return calibration images and held-out ones: every fourth, 8 at most. Fewer than four images serve for both."""
    held_out = tuple(images[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY][:_MOST_HELD_OUT])
    return tuple(image for image in images if image not in held_out), held_out or tuple(images)


def _check_given_base(base: Path, tuned: Path, progress: Progress) -> None:
    from lbm_lora.hub import open_checkpoint
    from lbm_lora.model.baseline import check_pair, compare_base

    progress.note(f"Base: {base}")
    with open_checkpoint(base) as one, open_checkpoint(tuned) as other:
        _check_base(base, compare_base(one.component(), other.component(), progress=progress))
        check_pair(one, other)


def _check_base(path: Path, baseline: "BaselineReport") -> None:
    if not baseline.can_be_base:
        raise PairingError(
            f"{path}: {baseline.verdict} Give the one that it was tuned from as ",
            Option("base_model_path"),
            ", or its backbone as ",
            Option("backbone_signature"),
            ".",
        )
