"""Sums over the blocks of a network."""

import math
from collections.abc import Iterable, Sequence

from lbm_lora.report.inspection.adapter_values import BlockFacts, DeltaFacts
from lbm_lora.report.inspection.values import TensorFacts


def norm_of(norms: Iterable[float]) -> float:
    """Return the joint norm of parts; nan if one of them is."""
    return math.sqrt(math.fsum(norm**2 for norm in norms))


def block_facts(rows: Sequence[DeltaFacts] | Sequence[TensorFacts]) -> tuple[BlockFacts, ...]:
    """Sum up deltas or tensors by block, in their order."""
    grouped: dict[str, list[DeltaFacts | TensorFacts]] = {}
    for row in rows:
        grouped.setdefault(row.block, []).append(row)
    total = norm_of(row.norm for row in rows)
    return tuple(_block(name, members, total) for name, members in grouped.items())


def _block(name: str, rows: Sequence[DeltaFacts | TensorFacts], total: float) -> BlockFacts:
    norm = norm_of(row.norm for row in rows)
    deltas = [row for row in rows if isinstance(row, DeltaFacts)]
    return BlockFacts(
        block=name,
        tensors=len(rows),
        nbytes=sum(row.nbytes for row in rows),
        norm=norm,
        share=(norm / total) ** 2 if total else 0.0,
        ranks=sum(delta.rank or 0 for delta in deltas),
        ranks_90=sum(delta.rank_90 or 0 for delta in deltas),
        ranks_99=sum(delta.rank_99 or 0 for delta in deltas),
    )
