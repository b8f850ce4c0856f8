"""The adapter files that an extraction writes, all of them in one pass."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import yaml

from lbm_lora.adapter import (
    FORMAT,
    METADATA_ROOM,
    AdapterMetadata,
    AdapterWriter,
    Ledger,
    LedgerRow,
    Status,
    extraction_facts,
)
from lbm_lora.atomic import write_text
from lbm_lora.checkpoint import Fingerprint
from lbm_lora.errors import CheckpointError
from lbm_lora.extract import Outcome, Plan
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import Progress
from lbm_lora.report import WeightReport

_PACKED_DIGITS = 8  # of each base tensor in the fingerprint


@runtime_checkable
class Pass(Protocol):
    """An extraction, or the second pass of one."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Outcome, ...]]: ...
    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]: ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """One adapter that is to be written.

    Attributes:
        path: of its file.
        shapes, ranks: of its lora modules.
        dense: shapes of its dense deltas.
        rank, conv_rank: as asked for; where ranks are chosen, the highest ones.
        settings: of the run, for the file's metadata; no folders.
        errors: that are known before the file is measured.
    """

    path: Path
    shapes: Mapping[ModuleName, tuple[int, ...]]
    ranks: Mapping[ModuleName, int]
    dense: Mapping[ParamName, tuple[int, ...]]
    rank: int
    conv_rank: int
    settings: Mapping[str, object]
    errors: Mapping[str, float] = field(default_factory=dict[str, float])


def write_adapters(
    targets: Sequence[Target], extraction: Pass, plan: Plan, dtype: torch.dtype, progress: Progress
) -> list[Ledger]:
    """Stream every outcome into its files, and the metadata when all is known; every file is whole or not there.

    Raises:
        CheckpointError: there is nothing to store.
    """
    rows: list[list[LedgerRow]] = [[] for _ in targets]
    progress.start(len(extraction), "extracting")
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(target, plan, dtype)) for target in targets]
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
            counts = ", ".join(f"{count} {status}" for status, count in ledgers[0].counts().items())
            raise CheckpointError(
                f"{plan.pairing.tuned.path} changes nothing of {plan.pairing.base.path} that could be stored: "
                f"{counts}. Are base and tuned the same file?"
            )
        for writer, target, ledger in zip(writers, targets, ledgers, strict=True):
            writer.metadata = _metadata(target, ledger, *extraction.fingerprints())
    return ledgers


def overhead(target_settings: Mapping[str, object], plan: Plan) -> int:
    """Bytes of an adapter file's header that are not entries of tensors, at most."""
    return len(json.dumps(_room(target_settings, plan).to_header())) + METADATA_ROOM


def write_sidecar(target: Target, report: WeightReport, *, base: str, min_diff: float) -> Path:
    """The documented `..._config.yaml` beside the LoRA."""
    path = target.path.with_name(f"{target.path.stem}_config.yaml")
    facts = {
        "architecture": "LBM",
        "base_model": base,
        "change_threshold": min_diff,
        "conv_rank": target.conv_rank,
        "coverage_percentage": f"{100 * (1 - report.counts['excluded'] / report.tensors):.1f}%",
        "extraction_method": "lbm_lora",
        "native_naming": True,
        "rank": target.rank,
        "total_analyzed_layers": report.tensors,
        "total_lora_modules": report.counts["lora"],
        "total_dense_deltas": report.counts["dense"],
        "total_stored_tensors": report.counts["lora"] + report.counts["dense"],
    }
    write_text(path, yaml.safe_dump(json.loads(json.dumps(facts)), sort_keys=True))
    return path


def _writer(target: Target, plan: Plan, dtype: torch.dtype) -> AdapterWriter:
    prefix, room = plan.pairing.tuned.prefix, _room(target.settings, plan)
    return AdapterWriter(target.path, prefix, dtype, target.shapes, target.ranks, target.dense, room)


def _room(settings: Mapping[str, object], plan: Plan) -> AdapterMetadata:
    """Metadata as long as the final one can become."""
    known = json.dumps(settings) + "0" * len(plan.pairing.base) * _PACKED_DIGITS
    return AdapterMetadata(facts={"room": json.dumps(known)})


def _metadata(target: Target, ledger: Ledger, base: Fingerprint, tuned: Fingerprint) -> AdapterMetadata:
    total = ledger.total()
    facts = extraction_facts(
        rank=target.rank,
        conv_rank=target.conv_rank,
        counts=ledger.counts(),
        errors={"relative_error": total.relative_error, "noise_floor": total.noise_floor, **target.errors},
        settings=target.settings,
    )
    return AdapterMetadata(FORMAT, base.digest, base.packed(), tuned.digest, facts)
