"""Extract a LoRA from a fine-tuned checkpoint: the verb `extract`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lbm_lora.adapter import precision
from lbm_lora.atomic import guard_output
from lbm_lora.checkpoint import dtype_name, open_checkpoint
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.errors import ConfigError, Option, OutputError, give_one
from lbm_lora.extraction import (
    COVERAGES,
    DeltaSettings,
    ExtractedAdapter,
    OutputNorm,
    Plan,
    Prediction,
    RankRule,
    TrialImages,
    extract_adapters,
    plan_extraction,
    rank_rule,
    write_sidecar,
)
from lbm_lora.model.baseline import check_pair
from lbm_lora.model.device import resolve_device
from lbm_lora.model.resolve import config_beside
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report import WeightReport, file_labels, weight_report

_FOR_THE_OUTPUT = (
    "Made for the denoiser's output: bands and errors of the weights say little about it. What counts is the error of "
    "the output, and images: lbm-lora validate --images."
)


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """The files that were written, and how well they keep the change; with --ranks those of the first rank."""

    adapter: Path
    sidecar: Path
    nbytes: int
    report: WeightReport
    notes: tuple[str, ...]
    predicted: Prediction | None = None
    """What is expected of the LoRA, and what was measured; None where ranks were given and nothing was calibrated."""
    images: TrialImages | None = None
    """Its images against the tuned model's, where --images or --min_psnr asked for them."""
    sizes: tuple[Prediction, ...] = ()
    """What other sizes would give, where ranks were chosen for all layers together."""
    further: tuple["ExtractResult", ...] = ()
    """The LoRAs of the other ranks or sizes."""


def run(config: ExtractConfig, progress: Progress = SILENT) -> ExtractResult:
    """Extract the LoRA: in one pass over both files where the ranks are given, in two where they are chosen.

    Raises:
        InputError: of the kind that fits; nothing is written then. See `lbm_lora.errors`.
    """
    rule, paths = _check(config)
    device = resolve_device(config.device, fp64="the decomposition sums in")
    images = _readable(config.images or (config.calibration_images if config.min_psnr is not None else None))
    settings = DeltaSettings(dtype=_dtype(config), min_diff=config.min_diff, device=device)
    with open_checkpoint(_base(config, progress)) as base, open_checkpoint(config.tuned_model_path) as tuned:
        plan = plan_extraction(
            base.component(),
            tuned.component(),
            include=(*config.include, *COVERAGES[config.target_coverage]),
            exclude=config.exclude,
            keep_dense=config.dense,
        )
        check_pair(base, tuned)
        extracted = extract_adapters(
            plan,
            rule,
            settings,
            paths,
            run_settings=_run_settings(config),
            norm=_output_norm(config, plan, images, device, progress),
            progress=progress,
        )
    labels = file_labels(base.path, tuned.path)
    first, *further = [_result(config, one, labels) for one in extracted]
    return replace(first, further=tuple(further))


def _check(config: ExtractConfig) -> tuple[RankRule, list[Path]]:
    """The rule and the outputs; what cannot be is refused before a checkpoint is opened."""
    has_images = config.images is not None or config.calibration_images is not None
    rule = rank_rule(config, is_calibrated=config.statistics is not None, has_images=has_images)
    if config.save_to.suffix != ".safetensors":
        raise OutputError(Option("save_to"), f" {config.save_to}: a LoRA is a .safetensors file.")
    if config.include and COVERAGES[config.target_coverage]:
        raise give_one("include", "target_coverage", "choose layers")
    if config.calibration is not None and config.calibration_images is not None:
        raise give_one("calibration", "calibration_images", "weigh the errors")
    if config.images is not None and config.statistics is None:
        raise ConfigError(Option("images"), " needs ", Option("calibration"), "; for other LoRAs: lbm-lora validate.")
    stem = config.save_to.stem
    paths = [config.save_to.with_stem(f"{stem}_{name}" if name else stem) for name in rule.names]
    inputs = [config.base_model_path, config.tuned_model_path, *([config.calibration] if config.calibration else [])]
    for path in paths:
        guard_output(path, inputs)
    return rule, paths


def _readable(images: str | Sequence[str] | None) -> Sequence[Path]:
    if images is None:
        return ()
    from lbm_lora.imaging.paths import readable_sources

    return readable_sources(images)


def _dtype(config: ExtractConfig) -> torch.dtype:
    """Of the files. The errors of calibrated ones come to lie below what bf16 rounds away."""
    return precision(config.save_precision or ("fp16" if config.statistics is not None else "bf16"))


def _base(config: ExtractConfig, progress: Progress) -> Path:
    """The base, which is made first where that is asked for."""
    if not config.create_base_model:
        return config.base_model_path
    # only this needs the network classes: extraction itself works without them
    from lbm_lora.workflows.base import ensure_base

    return ensure_base(
        config.base_model_path,
        backbone_signature=config.backbone_signature,
        config_path=config.config_path or config_beside(config.tuned_model_path),
        is_made=True,
        progress=progress,
    )


def _output_norm(
    config: ExtractConfig, plan: Plan, images: Sequence[Path], device: torch.device, progress: Progress
) -> OutputNorm | None:
    """Errors weighed by the output, where that is asked for; statistics of images are measured first."""
    if config.statistics is None:
        return None
    from lbm_lora.calibration import output_norm
    from lbm_lora.workflows import calibrate

    if config.calibration_images is not None:
        settings = CalibrateConfig(
            tuned_model_path=config.tuned_model_path,
            images=config.calibration_images,
            save_to=config.statistics,
            device=config.device,
            config_path=config.config_path,
        )
        calibrate.run(settings, progress)
    return output_norm(
        config.statistics,
        plan,
        tuned_model_path=config.tuned_model_path,
        config_path=config.config_path,
        images=images,
        is_checked=config.check,
        device=device,
        progress=progress,
    )


def _run_settings(config: ExtractConfig) -> dict[str, object]:
    """What the file says of the run; file names without folders."""
    return {
        "base": config.base_model_path.name,
        "tuned": config.tuned_model_path.name,
        "method": "calibrated" if config.statistics is not None else "plain",
        "dtype": dtype_name(_dtype(config)),
        "include": config.include,
        "exclude": config.exclude,
        "target_coverage": config.target_coverage,
        "dense": config.dense,
        "min_diff": config.min_diff,
    }


def _result(config: ExtractConfig, extracted: ExtractedAdapter, labels: tuple[str, str]) -> ExtractResult:
    output, ledger = extracted.output, extracted.ledger
    sidecar = write_sidecar(output, ledger, base=config.base_model_path.name, min_diff=config.min_diff)
    return ExtractResult(
        adapter=output.path,
        sidecar=sidecar,
        nbytes=output.path.stat().st_size,
        report=weight_report(ledger, base=labels[0], tuned=labels[1], adapter=output.path.name),
        notes=(_FOR_THE_OUTPUT,) if config.statistics is not None else (),
        predicted=extracted.predicted,
        images=extracted.chosen.images if extracted.chosen else None,
        sizes=extracted.sizes,
    )
