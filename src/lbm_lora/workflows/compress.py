"""Make a small LoRA of a fine-tuned model in one step, and measure it in images: the verb `compress`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lbm_lora import bundled
from lbm_lora.adapter.twins import Twin
from lbm_lora.calibration import Calibration, CalibrationSettings, plan_statistics
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.errors import Option, OutputError, PairingError
from lbm_lora.fidelity.outputs import VariantSummary
from lbm_lora.files import Outputs, is_same, together
from lbm_lora.hub import localized
from lbm_lora.imaging.paths import readable_sources
from lbm_lora.model.baseline import BaselineReport, check_pair, compare_base
from lbm_lora.model.make_base import BaseRecipe
from lbm_lora.model.resolve import config_beside
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import parse_nbytes
from lbm_lora.report import Report
from lbm_lora.verbs.calibrate import chosen_images
from lbm_lora.verbs.extract import ExtractResult, extract_several, planned_loras
from lbm_lora.workflows import validate, validate_files
from lbm_lora.workflows.compress_files import CompressFiles, size_of

_HELD_OUT_EVERY = 4
_MOST_HELD_OUT = 8


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """The LoRA, its fidelity to the tuned model, and the paths of all files."""

    adapter: Path
    nbytes: int
    base: Path
    tuned_nbytes: int
    """Bytes of all tensors of the tuned checkpoint."""
    report: Report
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
    twins: tuple[Twin, ...] = ()
    """The LoRA in other formats."""

    @property
    def with_lora(self) -> VariantSummary:
        """One-step images of base + LoRA against the tuned model's."""
        return self._summary(validate.LORA)

    @property
    def without(self) -> VariantSummary:
        """The same for the base alone."""
        return self._summary("base")

    def _summary(self, variant: str) -> VariantSummary:
        assert self.report.outputs is not None  # images are always measured
        return next(entry for entry in self.report.outputs.summary if entry.variant == variant)


def run(config: CompressConfig, progress: Progress = SILENT) -> CompressResult:
    """Find or make the base, calibrate, extract, and compare.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    if config.size is not None:
        parse_nbytes(config.size, "size")
    files = CompressFiles.of(config)
    if is_same(files.folder, config.tuned):  # with the base, it would hold two checkpoints
        raise OutputError(Option("output"), f" {files.folder} is the folder of the checkpoint. Choose another one.")
    config = localized(config, progress)
    images = readable_sources(config.images or (str(bundled.PHOTOS),))
    seen, measured_on = split_images(images) if config.calibration is None else ((), images[:_MOST_HELD_OUT])
    with open_checkpoint(config.tuned) as tuned:
        nbytes = sum(spec.numel * spec.dtype.itemsize for spec in tuned.specs.values())
    steps = _Steps(config, files, seen, measured_on, nbytes)
    steps.planned().reads(*images).check()
    base_file = _base(steps, progress)
    statistics = config.calibration or steps.calibrated(progress)
    with together():  # an earlier LoRA stays with its report until the new ones are there
        extracted = steps.extracted(base_file, statistics, progress)
        compared = validate.compared(steps.validate(base_file, extracted.adapter), progress)
    by_suffix = {path.suffix: path for path in compared.files}
    return CompressResult(
        adapter=extracted.adapter,
        nbytes=extracted.nbytes,
        base=base_file,
        tuned_nbytes=nbytes,
        report=compared.report,
        images=len(measured_on),
        seen_images=len(compared.seen_images),
        page=by_suffix[".html"],
        comparison=by_suffix[".png"],
        statistics=statistics,
        twins=extracted.twins,
    )


@dataclass(frozen=True)
class _Steps:
    """The commands that one step stands for.

    Attributes:
        files: where everything is written.
        seen, measured_on: images to calibrate on, and to compare.
        nbytes: of the tuned checkpoint's tensors.
    """

    config: CompressConfig
    files: CompressFiles
    seen: Sequence[Path]
    measured_on: Sequence[Path]
    nbytes: int

    @property
    def base(self) -> BaseRecipe:
        return BaseRecipe(
            save_path=self.files.base,
            config_path=config_beside(self.config.tuned),
            backbone_signature=self.config.backbone_signature,
            tuned=self.config.tuned,
            overwrite=self.config.overwrite,
        )

    def calibrated(self, progress: Progress) -> Path:
        """Measure the statistics, or take those again that were measured so before."""
        how = Calibration(
            images=chosen_images(self.seen, min(self.config.count, len(self.seen))),
            settings=CalibrationSettings(seed=self.config.seed),
            device=self.config.device,
        )
        with open_checkpoint(self.config.tuned) as tuned:
            how.file_at(self.files.statistics, tuned, overwrite=self.config.overwrite, progress=progress)
        return self.files.statistics

    def extracted(self, base_file: Path, statistics: Path, progress: Progress) -> ExtractResult:
        return extract_several.verb.function(  # pyright: ignore[reportFunctionMemberAccess]
            base_file,
            self.config.tuned,
            save_to=self.files.lora,
            calibration=statistics,
            max_size=(size_of(self.config, self.nbytes),),
            save_precision=self.config.save_precision,
            also=self.config.also,
            device=self.config.device,
            overwrite=self.config.overwrite,
            progress=progress,
        )[1]

    def validate(self, base_file: Path, lora: Path) -> ValidateConfig:
        return ValidateConfig(
            base_model_path=base_file,
            tuned_model_path=self.config.tuned,
            lora_path=lora,
            images=_texts(self.measured_on),
            report=self.files.report,
            num_inference_steps=(1,),
            seed=self.config.seed,
            device=self.config.device,
            torch_dtype=self.config.torch_dtype,
            overwrite=self.config.overwrite,
        )

    @property
    def given_base(self) -> Path | None:
        """The base, if it need not be made."""
        return self.config.base_model_path or self.files.found_base(self.config.tuned)

    def planned(self) -> Outputs:
        """Return what all of them read and write."""
        outputs = Outputs(overwrite=self.config.overwrite)
        outputs.reads(self.config.tuned, self.config.base_model_path, self.config.calibration)
        base_file, statistics = self.given_base, self.config.calibration
        if base_file is None:
            outputs.then(self.base.outputs())
            base_file = self.base.save_path
        if statistics is None:
            outputs.then(plan_statistics(Outputs(), self.files.statistics))
            statistics = self.files.statistics
        outputs.then(planned_loras([self.files.lora], self.config.also).reads(base_file, statistics))
        comparison = self.validate(base_file, self.files.lora)
        return outputs.then(validate_files.plan_report(comparison, self.measured_on))


def split_images(images: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return calibration images and held-out ones: every fourth, 8 at most. Fewer than four images serve for both."""
    held_out = tuple(images[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY][:_MOST_HELD_OUT])
    return tuple(image for image in images if image not in held_out), held_out or tuple(images)


def _base(steps: _Steps, progress: Progress) -> Path:
    """Return a base that the tuned checkpoint may have been tuned from: an existing one, else a new one."""
    found = steps.given_base
    if found is None:
        made = steps.base.make(progress)
        assert made.baseline is not None  # a tuned checkpoint was given
        _check_base(made.base.safetensors, made.baseline)
        return made.base.safetensors
    progress.note(f"Base: {found}")
    with open_checkpoint(found) as one, open_checkpoint(steps.config.tuned) as other:
        _check_base(found, compare_base(one.component(), other.component(), progress=progress))
        check_pair(one, other)
    return found


def _check_base(path: Path, baseline: BaselineReport) -> None:
    if not baseline.can_be_base:
        raise PairingError(
            f"{path}: {baseline.verdict} Give the one that it was tuned from as ",
            Option("base_model_path"),
            ", or its backbone as ",
            Option("backbone_signature"),
            ".",
        )


def _texts(images: Sequence[Path]) -> tuple[str, ...]:
    return tuple(map(str, images))
