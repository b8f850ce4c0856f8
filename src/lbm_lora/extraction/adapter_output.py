"""The adapter files that an extraction writes, all of them in one pass."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

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
from lbm_lora.extraction.passes import Pass
from lbm_lora.extraction.plan import Plan
from lbm_lora.factorize import has_matrix_view
from lbm_lora.naming import ModuleName, ParamName, leaf_of
from lbm_lora.progress import Progress

_PACKED_DIGITS = 8  # of each base tensor in the fingerprint


@dataclass(frozen=True, kw_only=True)
class AdapterOutput:
    """One adapter file that is to be written.

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
    outputs: Sequence[AdapterOutput], extraction: Pass, plan: Plan, dtype: torch.dtype, progress: Progress
) -> list[Ledger]:
    """Stream every outcome into its files, and the metadata when all is known; every file is complete or not there.

    Raises:
        CheckpointError: there is nothing to store.
    """
    rows: list[list[LedgerRow]] = [[] for _ in outputs]
    progress.start(len(extraction), "extracting")
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(output, plan, dtype)) for output in outputs]
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
        for writer, output, ledger in zip(writers, outputs, ledgers, strict=True):
            writer.metadata = _metadata(output, ledger, *extraction.fingerprints())
    return ledgers


def header_bytes(settings: Mapping[str, object], plan: Plan) -> int:
    """Bytes of an adapter file's header that are not entries of tensors, at most."""
    return len(json.dumps(_room(settings, plan).to_header())) + METADATA_ROOM


def write_sidecar(output: AdapterOutput, ledger: Ledger, *, base: str, min_diff: float) -> Path:
    """The documented `..._config.yaml` beside an adapter file."""
    path = output.path.with_name(f"{output.path.stem}_config.yaml")
    counts = ledger.counts()
    facts = {
        "architecture": "LBM",
        "base_model": base,
        "change_threshold": min_diff,
        "conv_rank": output.conv_rank,
        "coverage_percentage": f"{100 * (1 - counts['excluded'] / len(ledger)):.1f}%",
        "extraction_method": "lbm_lora",
        "native_naming": True,
        "rank": output.rank,
        "total_analyzed_layers": sum(_is_layer(row) for row in ledger),
        "total_lora_modules": counts["lora"],
        "total_dense_deltas": counts["dense"],
        "total_stored_tensors": counts["lora"] + counts["dense"],
    }
    write_text(path, yaml.safe_dump(json.loads(json.dumps(facts)), sort_keys=True))
    return path


def _is_layer(row: LedgerRow) -> bool:
    """Whether a tensor counts as a layer: the weight of one with a matrix."""
    return leaf_of(row.name) == "weight" and has_matrix_view(row.shape)


def _writer(output: AdapterOutput, plan: Plan, dtype: torch.dtype) -> AdapterWriter:
    prefix, room = plan.pairing.tuned.prefix, _room(output.settings, plan)
    return AdapterWriter(output.path, prefix, dtype, output.shapes, output.ranks, output.dense, room)


def _room(settings: Mapping[str, object], plan: Plan) -> AdapterMetadata:
    """Metadata as long as the final one can become."""
    known = json.dumps(settings) + "0" * len(plan.pairing.base) * _PACKED_DIGITS
    return AdapterMetadata(facts={"room": json.dumps(known)})


def _metadata(output: AdapterOutput, ledger: Ledger, base: Fingerprint, tuned: Fingerprint) -> AdapterMetadata:
    total = ledger.total()
    facts = extraction_facts(
        rank=output.rank,
        conv_rank=output.conv_rank,
        counts=ledger.counts(),
        errors={"relative_error": total.relative_error, "noise_floor": total.noise_floor, **output.errors},
        settings=output.settings,
    )
    return AdapterMetadata(FORMAT, base.digest, base.packed(), tuned.digest, facts)
