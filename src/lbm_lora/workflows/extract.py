"""Extract a LoRA from a fine-tuned checkpoint: the verb `extract`."""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import yaml

from lbm_lora.adapter import FORMAT, AdapterMetadata, AdapterWriter, Ledger, LedgerRow, Status, extraction_facts
from lbm_lora.atomic import guard_output, write_text
from lbm_lora.checkpoint import Checkpoint, Fingerprint, dtype_name, dtype_of, open_checkpoint
from lbm_lora.errors import CheckpointError, ConfigError, OutputError
from lbm_lora.extract import COVERAGES, Extraction, Plan, Settings, plan_extraction
from lbm_lora.factorize import FULL_RANK, FixedRank
from lbm_lora.model.device import resolve_device
from lbm_lora.model.resolve import config_beside
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report import WeightReport, file_labels, weight_report

_log = logging.getLogger(__name__)

_VAE = "vae."
_BASE_MARK = "exact_architecture_match"  # what `lbm-lora base` writes as `initialization`
_PACKED_DIGITS = 8  # of each base tensor in the fingerprint


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms whole."""

    base_model_path: Path
    """Checkpoint that the tuned one started from (.safetensors, shards with an index, .ckpt, or a folder)."""
    tuned_model_path: Path
    """The fine-tuned checkpoint."""
    save_to: Path
    """Where to write the LoRA: a .safetensors file."""
    rank: int = 32
    """Rank of linear layers. 9999: as high as each matrix allows."""
    conv_rank: int = 16
    """Rank of conv layers. 9999: as high as each matrix allows."""
    ranks: tuple[int, ...] = ()
    """Several LoRAs in one pass, one for each of these ranks of linear layers, named LORA_r16.safetensors and so on.
    Their conv ranks are in the proportion of --conv_rank to --rank."""
    include: tuple[str, ...] = ()
    """Only tensors that one of these patterns matches: part of a name, a glob, or re:REGEX."""
    exclude: tuple[str, ...] = ()
    """Leave these tensors out; wins over --include."""
    target_coverage: Literal["full", "attention", "extended"] = "full"
    """Which layers: all, attention only (attn1 and attn2), or attention with feed-forward and projections."""
    dense: bool = True
    """Keep the changes of biases and norms, whole."""
    save_precision: Literal["float", "fp16", "bf16"] = "bf16"
    """Precision of the stored tensors."""
    min_diff: float = 0.0
    """Leave out tensors whose largest change is below this; they enter the ledger."""
    device: str = "auto"
    """Where matrices are decomposed: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    create_base_model: bool = False
    """Where --base_model_path does not exist: make the base there first, from --backbone_signature."""
    backbone_signature: str | None = None
    """Backbone for --create_base_model. Default: as in `lbm-lora base`."""
    config_path: Path | None = None
    """LBM's config.yaml for --create_base_model. Default: the one beside the tuned checkpoint."""


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """The files that were written, and how well they keep the change; with --ranks those of the first rank."""

    adapter: Path
    sidecar: Path
    nbytes: int
    report: WeightReport
    notes: tuple[str, ...]
    further: tuple["ExtractResult", ...] = ()
    """Those of the other ranks."""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """One LoRA that is to be written."""

    path: Path
    ranks: FixedRank


def run(config: ExtractConfig, progress: Progress = SILENT) -> ExtractResult:
    """Extract the LoRA in one pass over both files.

    Raises:
        InputError: of the kind that fits; nothing is written then. See `lbm_lora.errors`.
    """
    targets = _targets(config)
    _check(config, targets)
    settings = Settings(
        dtype=dtype_of(config.save_precision), min_diff=config.min_diff, device=resolve_device(config.device)
    )
    with open_checkpoint(_base(config, progress)) as base, open_checkpoint(config.tuned_model_path) as tuned:
        plan = plan_extraction(
            base.component(),
            tuned.component(),
            targets[0].ranks,
            include=(*config.include, *COVERAGES[config.target_coverage]),
            exclude=config.exclude,
            keep_dense=config.dense,
        )
        notes = (*_swap_notes(tuned), *_vae_notes(base, tuned))
        ledgers = _write(config, targets, [plan.with_ranks(target.ranks) for target in targets], settings, progress)
    base_label, tuned_label = file_labels(base.path, tuned.path)
    results: list[ExtractResult] = []
    for target, ledger in zip(targets, ledgers, strict=True):
        report = weight_report(ledger, base=base_label, tuned=tuned_label, adapter=target.path.name)
        sidecar = _write_sidecar(config, target, report)
        nbytes = target.path.stat().st_size
        results.append(ExtractResult(adapter=target.path, sidecar=sidecar, nbytes=nbytes, report=report, notes=notes))
    return replace(results[0], further=tuple(results[1:]))


def _targets(config: ExtractConfig) -> list[_Target]:
    if not config.ranks:
        return [_Target(path=config.save_to, ranks=FixedRank(linear=config.rank, conv=config.conv_rank))]
    if len(set(config.ranks)) < len(config.ranks):
        raise ConfigError(f"--ranks {' '.join(map(str, config.ranks))}: each rank is given once.")
    return [
        _Target(
            path=config.save_to.with_name(f"{config.save_to.stem}_r{rank}{config.save_to.suffix}"),
            ranks=FixedRank(linear=rank, conv=_conv_rank(config, rank)),
        )
        for rank in config.ranks
    ]


def _conv_rank(config: ExtractConfig, rank: int) -> int:
    """The conv rank that belongs to one of --ranks; full rank stays full."""
    if rank >= FULL_RANK:
        return FULL_RANK
    return max(1, round(rank * config.conv_rank / config.rank)) if config.rank > 0 else rank


def _check(config: ExtractConfig, targets: Sequence[_Target]) -> None:
    if config.save_to.suffix != ".safetensors":
        raise OutputError(f"--save_to {config.save_to}: a LoRA is a .safetensors file.")
    if config.include and COVERAGES[config.target_coverage]:
        raise ConfigError(
            f"--include and --target_coverage {config.target_coverage} both choose layers. Give one of them."
        )
    if config.device.startswith("mps"):
        raise ConfigError("--device mps: the decomposition sums in fp64, which mps has not. Use cpu.")
    if config.min_diff < 0:
        raise ConfigError(f"--min_diff is {config.min_diff:g}: it is compared with absolute values, give 0 or more.")
    for target in targets:
        guard_output(target.path, [config.base_model_path, config.tuned_model_path])


def _base(config: ExtractConfig, progress: Progress) -> Path:
    if not config.create_base_model:
        return config.base_model_path
    # only this needs the network classes: extraction itself works without them
    from lbm_lora.workflows.base import ensure_base

    return ensure_base(
        config.base_model_path,
        backbone_signature=config.backbone_signature,
        config_path=config.config_path or config_beside(config.tuned_model_path),
        progress=progress,
    )


def _write(
    config: ExtractConfig, targets: Sequence[_Target], plans: Sequence[Plan], settings: Settings, progress: Progress
) -> list[Ledger]:
    """Stream every outcome into its files, and the metadata when all is known."""
    extraction = Extraction(plans, settings)
    rows: list[list[LedgerRow]] = [[] for _ in targets]
    progress.start(len(extraction), "extracting")
    with ExitStack() as stack:
        writers = [
            stack.enter_context(_writer(config, target, plan, settings.dtype))
            for target, plan in zip(targets, plans, strict=True)
        ]
        for outcomes in extraction:
            for writer, outcome, kept in zip(writers, outcomes, rows, strict=True):
                if outcome.module is not None:
                    writer.add_module(outcome.module)
                if outcome.dense is not None:
                    writer.add_dense(outcome.row.name, outcome.dense)
                kept.append(outcome.row)
            progress.advance()
        ledgers = [Ledger(tuple(kept)) for kept in rows]
        if not ledgers[0].of(Status.LORA, Status.DENSE):
            raise CheckpointError(
                f"{config.tuned_model_path} changes nothing of {config.base_model_path} that could be stored: "
                f"{_counts(ledgers[0])}. Are base and tuned the same file?"
            )
        for writer, target, ledger in zip(writers, targets, ledgers, strict=True):
            writer.metadata = _metadata(config, target, ledger, *extraction.fingerprints())
    return ledgers


def _writer(config: ExtractConfig, target: _Target, plan: Plan, dtype: torch.dtype) -> AdapterWriter:
    known = json.dumps(_settings(config, target)) + "0" * len(plan.pairing.base) * _PACKED_DIGITS
    room = AdapterMetadata(facts={"room": json.dumps(known)})
    return AdapterWriter(target.path, plan.pairing.tuned.prefix, dtype, plan.shapes(), plan.ranks(), plan.dense(), room)


def _counts(ledger: Ledger) -> str:
    return ", ".join(f"{count} {status}" for status, count in ledger.counts().items())


def _settings(config: ExtractConfig, target: _Target) -> dict[str, object]:
    """What the file says of the run; file names without folders."""
    return {
        "base": config.base_model_path.name,
        "tuned": config.tuned_model_path.name,
        "dtype": dtype_name(dtype_of(config.save_precision)),
        "rank_policy": "fixed",
        "rank": target.ranks.linear,
        "conv_rank": target.ranks.conv,
        "include": config.include,
        "exclude": config.exclude,
        "target_coverage": config.target_coverage,
        "dense": config.dense,
        "min_diff": config.min_diff,
    }


def _metadata(
    config: ExtractConfig, target: _Target, ledger: Ledger, base: Fingerprint, tuned: Fingerprint
) -> AdapterMetadata:
    total = ledger.total()
    facts = extraction_facts(
        rank=target.ranks.linear,
        conv_rank=target.ranks.conv,
        counts=ledger.counts(),
        errors={"relative_error": total.relative_error, "noise_floor": total.noise_floor},
        settings=_settings(config, target),
    )
    return AdapterMetadata(FORMAT, base.digest, base.packed(), tuned.digest, facts)


def _swap_notes(tuned: Checkpoint) -> tuple[str, ...]:
    """A warning where the tuned file says that it is an exact base."""
    if _BASE_MARK not in (tuned.metadata.get("initialization"), tuned.extra.get("initialization")):
        return ()
    note = f"{tuned.path} says that it is an exact base, not a tuned checkpoint. Are base and tuned swapped?"
    _log.warning(note)
    return (note,)


def _vae_notes(base: Checkpoint, tuned: Checkpoint) -> tuple[str, ...]:
    """A warning where the two carry different VAEs: no LoRA of the denoiser can make up for it."""
    names = [key for key in tuned.specs if key.startswith(_VAE) and key in base.specs]
    differing = [key for key in names if not torch.equal(base.read(key).float(), tuned.read(key).float())]
    if not differing:
        return ()
    note = (
        f"The VAEs differ in {len(differing)} of {len(names)} tensors ({differing[0]} ...): the LoRA is about the "
        "denoiser alone, so base + LoRA decodes with the base's VAE."
    )
    _log.warning(note)
    return (note,)


def _write_sidecar(config: ExtractConfig, target: _Target, report: WeightReport) -> Path:
    """The documented `..._config.yaml` beside the LoRA."""
    path = target.path.with_name(f"{target.path.stem}_config.yaml")
    weights = report.counts["lora"] + report.counts["dense"]
    facts = {
        "architecture": "LBM",
        "base_model": config.base_model_path.name,
        "change_threshold": config.min_diff,
        "conv_rank": target.ranks.conv,
        "coverage_percentage": f"{100 * (1 - report.counts['excluded'] / report.tensors):.1f}%",
        "extraction_method": "lbm_lora",
        "native_naming": True,
        "rank": target.ranks.linear,
        "total_analyzed_layers": report.tensors,
        "total_lora_modules": report.counts["lora"],
        "total_dense_deltas": report.counts["dense"],
        "total_stored_tensors": weights,
    }
    write_text(path, yaml.safe_dump(json.loads(json.dumps(facts)), sort_keys=True))
    return path
