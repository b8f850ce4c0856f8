"""Extract a LoRA from a fine-tuned checkpoint: the verb `extract`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lbm_lora.adapter import Ledger
from lbm_lora.checkpoint import dtype_name, open_checkpoint
from lbm_lora.extract import COVERAGES, Extraction, Plan, Settings, plan_extraction
from lbm_lora.factorize import FixedRank
from lbm_lora.model.device import resolve_device
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report import WeightReport, file_labels, weight_report
from lbm_lora.workflows.choosing import Policy, Prediction
from lbm_lora.workflows.extract_config import ExtractConfig
from lbm_lora.workflows.extract_inputs import base_path, calibration_of, swap_notes, trial_of, trial_pictures, vae_notes
from lbm_lora.workflows.extract_policy import (
    check,
    is_calibrated,
    paths_of,
    policy_facts,
    policy_of,
    stored_dtype,
)
from lbm_lora.workflows.extracted import Target, write_adapters, write_sidecar
from lbm_lora.workflows.surveying import surveyed
from lbm_lora.workflows.trying import PictureScores, tried

_FOR_THE_OUTPUT = (
    "Made for the denoiser's output: bands and errors of the weights say little about it. What counts is the error of "
    "the output, and pictures: lbm-lora validate --images."
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
    pictures: PictureScores | None = None
    """Its pictures against the tuned model's, where --images or --min_psnr asked for them."""
    sizes: tuple[Prediction, ...] = ()
    """What other sizes would give, where ranks were chosen for all layers together."""
    further: tuple["ExtractResult", ...] = ()
    """The LoRAs of the other ranks or sizes."""


def run(config: ExtractConfig, progress: Progress = SILENT) -> ExtractResult:
    """Extract the LoRA: in one pass over both files where the ranks are given, in two where they are chosen.

    Raises:
        InputError: of the kind that fits; nothing is written then. See `lbm_lora.errors`.
    """
    policy = policy_of(config)
    paths = paths_of(config)
    check(config, paths)
    pictures = trial_pictures(config)
    settings = Settings(dtype=stored_dtype(config), min_diff=config.min_diff, device=resolve_device(config.device))
    with open_checkpoint(base_path(config, progress)) as base, open_checkpoint(config.tuned_model_path) as tuned:
        plan = plan_extraction(
            base.component(),
            tuned.component(),
            policy.fixed[0] if policy.fixed else FixedRank(),
            include=(*config.include, *COVERAGES[config.target_coverage]),
            exclude=config.exclude,
            keep_dense=config.dense,
        )
        notes = (*swap_notes(tuned), *vae_notes(base, tuned))
        calibration = calibration_of(config, progress)
        if calibration is not None:
            notes = (*notes, _FOR_THE_OUTPUT)
        if policy.fixed and calibration is None:
            written = _given(config, policy, paths, plan, settings, progress)
        else:
            written = _chosen(config, policy, paths, plan, settings, calibration, pictures, progress)
    labels = file_labels(base.path, tuned.path)
    results = [_result(config, one, labels, notes) for one in written]
    return replace(results[0], further=tuple(results[1:]))


@dataclass(frozen=True, kw_only=True)
class _Written:
    """One LoRA that was written."""

    target: Target
    ledger: Ledger
    predicted: Prediction | None = None
    pictures: PictureScores | None = None
    sizes: tuple[Prediction, ...] = ()


def _given(
    config: ExtractConfig, policy: Policy, paths: Sequence[Path], plan: Plan, settings: Settings, progress: Progress
) -> list[_Written]:
    """Fixed ranks, least error of the weights: one pass."""
    plans = [plan.with_ranks(ranks) for ranks in policy.fixed]
    targets = [
        Target(
            path=path,
            shapes=one.shapes(),
            ranks=one.ranks(),
            dense=one.dense(),
            rank=ranks.linear,
            conv_rank=ranks.conv,
            settings=_settings(config, {"rank_policy": "fixed", "rank": ranks.linear, "conv_rank": ranks.conv}),
        )
        for path, one, ranks in zip(paths, plans, policy.fixed, strict=True)
    ]
    ledgers = write_adapters(targets, Extraction(plans, settings), plan, settings.dtype, progress)
    return [_Written(target=target, ledger=ledger) for target, ledger in zip(targets, ledgers, strict=True)]


def _chosen(
    config: ExtractConfig,
    policy: Policy,
    paths: Sequence[Path],
    plan: Plan,
    settings: Settings,
    calibration: Path | None,
    pictures: Sequence[Path],
    progress: Progress,
) -> list[_Written]:
    """Ranks or errors that are weighed for all layers together: two passes, and where it is calibrated a trial."""
    asked = {"calibration": calibration.name if calibration else None}
    facts = [_settings(config, {**policy_facts(config, index), **asked}) for index in range(len(paths))]
    with surveyed(
        plan,
        settings,
        policy,
        calibration,
        run_settings=max(facts, key=lambda one: len(str(one))),
        beside=config.save_to,
        progress=progress,
    ) as chosen:
        found = tried(chosen, policy, trial_of(config, plan, chosen, pictures, progress))
        targets = [
            chosen.target(one.choice, path, fact, one.errors)
            for one, path, fact in zip(found, paths, facts, strict=True)
        ]
        with chosen.emission([one.choice for one in found]) as emission:
            ledgers = write_adapters(targets, emission, chosen.plan, settings.dtype, progress)
        return [
            _Written(
                target=target,
                ledger=ledger,
                predicted=chosen.prediction(one.choice),
                pictures=one.pictures,
                sizes=chosen.table(one.choice.nbytes),
            )
            for target, ledger, one in zip(targets, ledgers, found, strict=True)
        ]


def _settings(config: ExtractConfig, policy: Mapping[str, object]) -> dict[str, object]:
    """What the file says of the run; file names without folders."""
    return {
        "base": config.base_model_path.name,
        "tuned": config.tuned_model_path.name,
        "method": "calibrated" if is_calibrated(config) else "plain",
        "dtype": dtype_name(stored_dtype(config)),
        **policy,
        "include": config.include,
        "exclude": config.exclude,
        "target_coverage": config.target_coverage,
        "dense": config.dense,
        "min_diff": config.min_diff,
    }


def _result(config: ExtractConfig, written: _Written, labels: tuple[str, str], notes: tuple[str, ...]) -> ExtractResult:
    path = written.target.path
    report = weight_report(written.ledger, base=labels[0], tuned=labels[1], adapter=path.name)
    sidecar = write_sidecar(written.target, report, base=config.base_model_path.name, min_diff=config.min_diff)
    return ExtractResult(
        adapter=path,
        sidecar=sidecar,
        nbytes=path.stat().st_size,
        report=report,
        notes=notes,
        predicted=written.predicted,
        pictures=written.pictures,
        sizes=written.sizes,
    )
