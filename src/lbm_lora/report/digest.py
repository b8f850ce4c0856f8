"""What text and page both derive from a weight report: the ledger per status, kinds, ranks, the worst modules."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

from lbm_lora.adapter import Status
from lbm_lora.factorize import rank_bound
from lbm_lora.report.weights import TensorResult, WeightReport, block_of
from lbm_lora.report.wording import plural

Kind = Literal["linear", "conv", "dense"]

_FLOW = (
    "time_embedding",
    "add_embedding",
    "class_embedding",
    "conv_in",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_norm_out",
    "conv_out",
)
_PLACES = {block: place for place, block in enumerate(_FLOW)}


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One status of the ledger.

    Attributes:
        details: `linear: 741`, `conv: 51`, or the reasons of the tensors left out, each with its number.
        change_share: of the squared norm of the change.
        error_share: of the squared error; nan where the error is not finite.
    """

    status: Status
    tensors: int
    details: tuple[str, ...]
    change_share: float
    error_share: float


@dataclass(frozen=True, kw_only=True)
class RankSummary:
    """The stored ranks of the lora modules.

    Attributes:
        full: modules whose rank is as high as their matrix allows.
    """

    least: int
    median: int
    most: int
    full: int
    modules: int

    def __str__(self) -> str:
        span = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}, median {self.median}"
        return f"{span}; {plural(self.full, 'module')} of {self.modules:,} at full rank"


def kind_of(row: TensorResult) -> Kind:
    """Return the kind of a tensor's delta, from its shape and, for a matrix, whether it is dense."""
    if row.status == Status.DENSE or not row.name.endswith("weight"):
        return "dense"
    return {2: "linear", 4: "conv"}.get(len(row.shape), "dense")  # pyright: ignore[reportReturnType]


def ledger_entries(report: WeightReport) -> tuple[LedgerEntry, ...]:
    """One entry for each status, in the ledger's order; tensors add up to `report.tensors`."""
    total = math.fsum(row.delta_norm**2 for row in report.rows)
    return tuple(_entry(report, status, total) for status in Status)


def lora_rows(report: WeightReport) -> list[TensorResult]:
    return [row for row in report.rows if row.status == Status.LORA]


def worst_modules(report: WeightReport, count: int) -> list[TensorResult]:
    """The lora modules with the highest relative error, the worst first."""
    return sorted(lora_rows(report), key=lambda row: -row.relative_error)[:count]


def error_named(report: WeightReport, name: str) -> float:
    """The relative error of the tensor called `name`; nan where there is none."""
    return next((row.relative_error for row in report.rows if row.name == name), math.nan)


def rank_summary(report: WeightReport) -> RankSummary | None:
    """None for an adapter without lora modules."""
    ranked = [(row.rank, row.shape) for row in lora_rows(report) if row.rank is not None]
    if not ranked:
        return None
    ranks = sorted(rank for rank, _ in ranked)
    return RankSummary(
        least=ranks[0],
        median=median_low(ranks),
        most=ranks[-1],
        full=sum(rank >= rank_bound(shape) for rank, shape in ranked),
        modules=len(ranked),
    )


def network_order(rows: Sequence[TensorResult]) -> list[TensorResult]:
    """Rows in the order that a UNet's input flows through its blocks; the file's order for any other network."""
    by_name = {row.name: row for row in rows}
    return [by_name[name] for name in names_in_order(by_name)]


def names_in_order(names: Collection[str]) -> list[str]:
    """Names of parameters in the order of `network_order`."""
    places = [_PLACES.get(name.partition(".")[0], -1) for name in names]
    if -1 in places:
        return list(names)
    return [name for _, name in sorted(zip(places, names, strict=True), key=lambda pair: pair[0])]


def block_order(rows: Sequence[TensorResult]) -> list[str]:
    """The blocks of the rows, in the order of `network_order`."""
    return list(dict.fromkeys(block_of(row.name) for row in network_order(rows)))


def _entry(report: WeightReport, status: Status, total: float) -> LedgerEntry:
    rows = [row for row in report.rows if row.status == status]
    change = math.fsum(row.delta_norm**2 for row in rows)
    return LedgerEntry(
        status=status,
        tensors=report.counts.get(status.value, 0),
        details=_details(report, status, rows),
        change_share=change / total if total else 0.0,
        error_share=sum(row.error_share for row in rows),
    )


def _details(report: WeightReport, status: Status, rows: Sequence[TensorResult]) -> tuple[str, ...]:
    if status == Status.EXCLUDED:
        counts = report.excluded_reasons
    else:
        counts = Counter(kind_of(row) if status == Status.LORA else row.reason for row in rows)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(f"{what}: {count:,}" for what, count in ordered)
