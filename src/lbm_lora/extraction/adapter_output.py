"""Build all adapters of an extraction in one pass: as files, or in memory."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import yaml

from lbm_lora.adapter import (
    FORMAT,
    METADATA_ROOM,
    Adapter,
    AdapterBuilder,
    AdapterMetadata,
    AdapterWriter,
    Ledger,
    PackedWriter,
    Status,
    extraction_facts,
    store_outcomes,
)
from lbm_lora.adapter.packed import DATA, encode_packed
from lbm_lora.checkpoint import Fingerprint
from lbm_lora.errors import CheckpointError
from lbm_lora.extraction.passes import Pass
from lbm_lora.extraction.plan import Plan
from lbm_lora.factorize import PACKED, has_matrix_view
from lbm_lora.files import MARK, write_text
from lbm_lora.naming import ModuleName, ParamName, leaf_of
from lbm_lora.progress import Progress

_PACKED_ROOM = 2048  # bytes for values that are known after the last tensor, of a packed file, and for its two entries
_PACKED_DIGITS = 8  # digits per base tensor in the fingerprint


@dataclass(frozen=True, kw_only=True)
class AdapterOutput:
    """One adapter to build.

    Attributes:
        rank, conv_rank: requested ranks, or the highest ones if ranks are chosen.
        settings: settings of the run, for the file's metadata; without folders.
        most_data: limit on the bytes of a packed file's data; None for no limit.
    """

    path: Path | None
    shapes: Mapping[ModuleName, tuple[int, ...]]
    ranks: Mapping[ModuleName, int]
    dense: Mapping[ParamName, tuple[int, ...]]
    rank: int
    conv_rank: int
    settings: Mapping[str, object]
    errors: Mapping[str, float] = field(default_factory=dict[str, float])
    most_data: int | None = None


class TooManyBytesError(Exception):
    """The data of a packed file exceeds its limit: how many bytes counts take is known once they are coded."""

    def __init__(self, index: int, nbytes: int) -> None:
        super().__init__(index, nbytes)
        self.index, self.nbytes = index, nbytes


def store_adapters(
    outputs: Sequence[AdapterOutput], extraction: Pass, plan: Plan, dtype: torch.dtype, progress: Progress
) -> list[tuple[Ledger, Adapter | None]]:
    """Stream every outcome to its outputs, then the metadata; every file is complete or absent.

    Returns:
        The ledger of each output as it is stored, and the adapter if it is kept in memory.
    """
    progress.start(len(extraction), "extracting")
    with ExitStack() as stack:
        stores = [_store(output, plan, dtype, stack) for output in outputs]
        ledgers = store_outcomes(extraction, stores, progress)
        if not ledgers[0].of(Status.LORA, Status.DENSE):
            counts = ", ".join(f"{count} {status}" for status, count in ledgers[0].counts().items())
            raise CheckpointError(
                f"{plan.pairing.tuned.path} has no change from {plan.pairing.base.path} that can be stored: "
                f"{counts}. Are base and tuned the same file?"
            )
        for index, (output, store) in enumerate(zip(outputs, stores, strict=True)):
            if output.most_data is not None:
                assert isinstance(store, AdapterBuilder)
                tensors = store.encoded() if isinstance(store, PackedWriter) else encode_packed(store.adapter())
                if tensors[DATA].nbytes > output.most_data:
                    raise TooManyBytesError(index, tensors[DATA].nbytes)
        for store, output, ledger in zip(stores, outputs, ledgers, strict=True):
            store.metadata = _metadata(output, ledger, *extraction.fingerprints())
    adapters = [
        None if output.path else cast(AdapterBuilder, store).adapter()
        for output, store in zip(outputs, stores, strict=True)
    ]
    return list(zip(ledgers, adapters, strict=True))


def header_bytes(settings: Mapping[str, object], plan: Plan, dtype: torch.dtype) -> int:
    """Return the most bytes that an adapter file's header takes besides its tensor entries; of a packed file all."""
    room = _PACKED_ROOM if dtype == PACKED else METADATA_ROOM
    return len(json.dumps(_room(settings, plan).to_header())) + room


def write_sidecar(adapter: Path, output: AdapterOutput, ledger: Ledger, *, base: str, min_diff: float) -> Path:
    """Write the documented `..._config.yaml` next to an adapter file."""
    path = sidecar_of(adapter)
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
        "total_analyzed_layers": sum(leaf_of(row.name) == "weight" and has_matrix_view(row.shape) for row in ledger),
        "total_lora_modules": counts["lora"],
        "total_dense_deltas": counts["dense"],
        "total_stored_tensors": counts["lora"] + counts["dense"],
    }
    write_text(path, f"# {MARK}\n{yaml.safe_dump(json.loads(json.dumps(facts)), sort_keys=True)}")
    return path


def sidecar_of(adapter: Path) -> Path:
    """Return the path of an adapter file's sidecar."""
    return adapter.with_name(f"{adapter.stem}_config.yaml")


def _store(output: AdapterOutput, plan: Plan, dtype: torch.dtype, stack: ExitStack) -> AdapterWriter | AdapterBuilder:
    prefix, room = plan.pairing.tuned.prefix, _room(output.settings, plan)
    if output.path is None:
        return AdapterBuilder(prefix, dtype, room)
    if dtype == PACKED:  # its index is known only after the last tensor
        return stack.enter_context(PackedWriter(output.path, prefix, room))
    writer = AdapterWriter(output.path, prefix, dtype, output.shapes, output.ranks, output.dense, room)
    return stack.enter_context(writer)


def _room(settings: Mapping[str, object], plan: Plan) -> AdapterMetadata:
    """Return metadata as long as the final metadata can be."""
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
