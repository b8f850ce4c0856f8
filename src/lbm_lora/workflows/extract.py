"""Extract a LoRA from a fine-tuned checkpoint: the verb `extract`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lbm_lora.adapter import precision, precision_name
from lbm_lora.adapter.twins import Twin, write_twins
from lbm_lora.checkpoint import Checkpoint, open_checkpoint
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.errors import ConfigError, Option, give_one
from lbm_lora.extraction import (
    COVERAGES,
    DeltaSettings,
    ExtractedAdapter,
    Plan,
    Shrinkage,
    extract_adapters,
    plan_extraction,
    write_sidecar,
)
from lbm_lora.factorize import PACKED
from lbm_lora.fidelity.weights import WeightReport, file_labels, weight_report
from lbm_lora.files import together, written_bytes
from lbm_lora.hub import localized
from lbm_lora.model.baseline import check_pair
from lbm_lora.model.device import resolve_device
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import (
    ErrorLimit,
    Prediction,
    PsnrFloor,
    RankRule,
    SizeLimits,
    TrialImages,
    needs_limit,
    rank_rule,
)
from lbm_lora.report.wording import OF_WEIGHTS_ALONE
from lbm_lora.workflows.extract_plan import base_config, calibration_of, output_paths
from lbm_lora.workflows.sources import checked_image_paths, image_paths

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics
    from lbm_lora.fidelity.network import Network

_WITH_BITS = (SizeLimits, ErrorLimit, PsnrFloor)
"""Rules that weigh all layers against each other: then bits can be chosen with the ranks."""


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """Written files, with their errors; of several LoRAs, those of the first."""

    adapter: Path
    sidecar: Path
    nbytes: int
    linear_rank: int
    """Given rank of linear layers, else the highest chosen one."""
    conv_rank: int
    """Given rank of conv layers, else the highest chosen one."""
    report: WeightReport
    notes: tuple[str, ...]
    predicted: Prediction | None = None
    """Expected and measured error of the LoRA; None if ranks were given and nothing was calibrated."""
    images: TrialImages | None = None
    """Its images against the tuned model's, with --images or --min_psnr."""
    sizes: tuple[Prediction, ...] = ()
    """Predictions for other sizes, if ranks were chosen for all layers together."""
    further: tuple["ExtractResult", ...] = ()
    """LoRAs of the other ranks or sizes."""
    twins: tuple[Twin, ...] = ()
    """The LoRA in other formats."""
    shrinkage: Shrinkage | None = None
    """How it compares with plain SVD of the same size at the calibration's checks, and whether the statistics were
    shrunk for that; None if it was not run."""


def run(config: ExtractConfig, progress: Progress = SILENT) -> ExtractResult:
    """Extract the LoRA: in one pass over both files if ranks are given, in two if they are chosen.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    config = localized(config, progress)
    rule, settings = check(config)
    paths = output_paths(config, rule, (*image_paths(config.images), *image_paths(config.calibration_images)))
    images = checked_image_paths(config.images or (config.calibration_images if config.min_psnr is not None else None))
    refit_images = checked_image_paths(config.calibration_images)
    with open_checkpoint(_base(config, progress)) as base, open_checkpoint(config.tuned_model_path) as tuned:
        plan = plan_of(config, base, tuned)
        statistics = None if config.statistics is None else _statistics(config, progress)  # stay if the rest fails
        with together():
            found = extracted(
                config,
                rule,
                settings,
                plan,
                paths,
                statistics=statistics,
                images=images,
                refit_images=refit_images,
                progress=progress,
            )
            labels = file_labels(base.path, tuned.path)
            results = [finish(config, path, one, labels, progress) for path, one in zip(paths, found, strict=True)]
    first, *further = results
    return replace(first, further=tuple(further))


run_extract = run
"""Its name on the public page."""


def extracted(
    config: ExtractConfig,
    rule: RankRule,
    settings: DeltaSettings,
    plan: Plan,
    paths: Sequence[Path | None],
    *,
    statistics: "Statistics | None",
    images: Sequence[Path],
    refit_images: Sequence[Path] = (),
    progress: Progress,
    network: "Network | None" = None,
) -> list[ExtractedAdapter]:
    """Extract the LoRAs of two open checkpoints. Files are written together (see `lbm_lora.files.together`).

    Args:
        config: its paths name things for messages and metadata; nothing is read from them.
        rule, settings: from `check`.
        plan: from `plan_of`.
        paths: one file for each of `rule.names`; None for a LoRA that is kept in memory.
        statistics: weight errors by the output; None: errors of the weights count.
        images: images that calibrated LoRAs are run on.
        refit_images: images that calibrated LoRAs are refitted on.
        network: the tuned network and what runs it, if it is not an LBM and LoRAs are to be run.
    """
    norm = None
    if statistics is not None:
        from lbm_lora.calibration import keeping_unmeasured, output_norm  # only this needs the network classes

        assert config.statistics is not None  # their name
        norm = output_norm(
            statistics,
            plan,
            path=config.statistics,
            config_path=config.config_path,
            images=images,
            is_checked=config.check,
            device=settings.device,
            progress=progress,
            network=network,
        )
        plan = keeping_unmeasured(plan, statistics)
    facts = _run_settings(config, settings, statistics)
    found = extract_adapters(plan, rule, settings, paths, run_settings=facts, norm=norm, progress=progress)
    if norm is None or not refit_images or not config.refit:
        return found
    from lbm_lora.workflows.refit import refitted  # only this needs the network classes

    return refitted(
        found,
        plan.pairing,
        refit_images,
        settings,
        config_path=config.config_path,
        open_trial=norm.open_trial,
        progress=progress,
    )


def plan_of(config: ExtractConfig, base: Checkpoint, tuned: Checkpoint) -> Plan:
    """Return what becomes of each tensor, by the options and before an hour of measuring.

    Raises:
        PairingError: the checkpoints do not pair.
        PatternError: a pattern matches nothing.
    """
    plan = plan_extraction(
        base.component(),
        tuned.component(),
        include=(*config.include, *COVERAGES[config.target_coverage]),
        exclude=config.exclude,
        keep_dense=config.dense,
    )
    check_pair(base, tuned)
    return plan


def check(config: ExtractConfig) -> tuple[RankRule, DeltaSettings]:
    """Return the rank rule and the storage of deltas; invalid options fail before a checkpoint is opened."""
    rule = rule_of(config)
    if config.include and COVERAGES[config.target_coverage]:
        raise give_one("include", "target_coverage", "choose layers")
    if config.calibration is not None and config.calibration_images is not None:
        raise give_one("calibration", "calibration_images", "weight the errors")
    if config.images is not None and config.statistics is None:
        raise ConfigError(Option("images"), " needs ", Option("calibration"), "; for other LoRAs: lbm-lora validate.")
    dtype = stored_dtype(config, rule)
    device = resolve_device(config.device, fp64="the decomposition sums in")
    return rule, DeltaSettings(dtype=dtype, min_diff=config.min_diff, device=device)


def rule_of(config: ExtractConfig) -> RankRule:
    """Return the rank rule, which also names the LoRAs.

    Raises:
        ConfigError: options that choose ranks do not go together.
    """
    has_images = config.images is not None or config.calibration_images is not None
    return rank_rule(config, is_calibrated=config.statistics is not None, has_images=has_images)


def stored_dtype(config: ExtractConfig, rule: RankRule) -> torch.dtype:
    """Return the dtype of the file.

    Raises:
        ConfigError: the rule chooses no bits, and the given precision needs them.
    """
    dtype = precision(config.save_precision or _default_precision(config, rule))
    if dtype == PACKED and not isinstance(rule, _WITH_BITS):
        raise needs_limit()
    return dtype


def _default_precision(config: ExtractConfig, rule: RankRule) -> str:
    """Return the precision of the file: calibrated errors can be below the rounding of bf16."""
    if config.statistics is None:
        return "bf16"
    return "auto" if isinstance(rule, _WITH_BITS) else "fp16"


def _base(config: ExtractConfig, progress: Progress) -> Path:
    """Return the base, which is made first if requested."""
    if not config.create_base_model:
        return config.base_model_path
    # only this needs the network classes: extraction itself works without them
    from lbm_lora.model.make_base import ensure_base

    return ensure_base(
        config.base_model_path,
        backbone_signature=config.backbone_signature,
        config_path=base_config(config),
        is_made=True,
        overwrite=config.overwrite,
        progress=progress,
    )


def _statistics(config: ExtractConfig, progress: Progress) -> "Statistics":
    """Return the given statistics, or measure those of images first."""
    from lbm_lora.calibration import load_statistics
    from lbm_lora.workflows import calibrate

    assert config.statistics is not None
    if config.calibration_images is not None:
        calibrate.measured(calibration_of(config), progress)
    return load_statistics(config.statistics)


def _run_settings(config: ExtractConfig, settings: DeltaSettings, statistics: "Statistics | None") -> dict[str, object]:
    """Return the settings that the file records; file names without folders."""
    return {
        "base": config.base_model_path.name,
        "tuned": config.tuned_model_path.name,
        "method": "calibrated" if config.statistics is not None else "plain",
        "dtype": precision_name(settings.dtype),
        "include": config.include,
        "exclude": config.exclude,
        "target_coverage": config.target_coverage,
        "dense": config.dense,
        "min_diff": config.min_diff,
        **_calibration_images(statistics),
    }


def _calibration_images(statistics: "Statistics | None") -> dict[str, object]:
    """Return digests of the calibration images, by which `validate` recognises them."""
    if statistics is None or not statistics.image_digests:
        return {}
    from lbm_lora.imaging.digests import packed

    return {"calibration_images": packed(statistics.image_digests)}


def finish(
    config: ExtractConfig, path: Path, found: ExtractedAdapter, labels: tuple[str, str], progress: Progress = SILENT
) -> ExtractResult:
    """Write the sidecar and the twins of a LoRA next to it, and return the result."""
    ledger = found.ledger
    sidecar = write_sidecar(path, found.output, ledger, base=config.base_model_path.name, min_diff=config.min_diff)
    return ExtractResult(
        adapter=path,
        sidecar=sidecar,
        nbytes=written_bytes(path),
        linear_rank=found.output.rank,
        conv_rank=found.output.conv_rank,
        report=weight_report(
            ledger,
            base=labels[0],
            tuned=labels[1],
            adapter=path.name,
            made_for_output=config.statistics is not None,
        ),
        notes=(_how_to_measure(config, path),) if config.statistics is not None else (),
        predicted=found.predicted,
        images=found.chosen.images if found.chosen else None,
        sizes=found.sizes,
        twins=write_twins(path, config.also, progress),
        shrinkage=found.shrinkage,
    )


def _how_to_measure(config: ExtractConfig, lora: Path) -> str:
    """Return the command line that measures a LoRA's outputs."""
    return (
        f"{OF_WEIGHTS_ALONE} To measure its output: lbm-lora validate --base_model_path {config.base_model_path} "
        f"--tuned_model_path {config.tuned_model_path} --lora_path {lora} --images FOLDER"
    )
