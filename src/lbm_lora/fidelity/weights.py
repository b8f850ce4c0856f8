"""How near an adapter comes to a fine-tune in weights: every delta measured, and summed up by block and in total.

The values of a report (here and in `outputs`) are frozen dataclasses of pydantic, whose types are checked. JSON has no
infinity, so there, and only there, numbers that are not finite are the strings `inf`, `-inf` and `nan`.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Annotated, Literal

from pydantic import ConfigDict, PlainSerializer
from pydantic.dataclasses import dataclass

from lbm_lora.adapter import Adapter, Ledger, LedgerRow, Status
from lbm_lora.blocks import Workspace
from lbm_lora.checkpoint import FingerprintBuilder, Pairing, ParamPair
from lbm_lora.errors import plural
from lbm_lora.factorize import Measure, measure_delta, rank_bound, with_error
from lbm_lora.naming import ParamName
from lbm_lora.runtime import ordered_map

STRICT = ConfigDict(strict=True, populate_by_name=True)
"""The settings of every value of a report."""

NonFinite = Literal["inf", "-inf", "nan"]
Band = Literal["excellent", "good", "poor", "noise"]


def _spell(value: float) -> float | NonFinite:
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


Float = Annotated[float, PlainSerializer(_spell, when_used="json")]
"""A float that need not be finite."""

BANDS: tuple[tuple[Band, float, str], ...] = (
    ("excellent", 0.05, "below 5 %"),
    ("good", 0.50, "5 to 50 %, minor artifacts"),
    ("poor", 1.00, "50 to 100 %, noticeable degradation"),
    ("noise", math.inf, "above 100 %, more noise than signal: increase the rank, or is it a LoRA of another model?"),
)
"""The documented bands of a relative error: name, upper bound, meaning. 100 % itself is not yet above 100 %."""


def band_of(relative_error: float) -> Band:
    """The name of the band that a relative error falls into."""
    for name, bound, _ in BANDS:
        if relative_error < bound or relative_error == bound == 1:
            return name
    return "noise"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TensorResult:
    """One tensor of the component. Errors are of the file as stored.

    Attributes:
        relative_error: Frobenius, ||delta - approximation|| / ||delta||.
        mean_error: mean |delta - approximation|.
        relative_mean_error: mean |delta - approximation| / mean |delta|, the documented measure.
        delta_norm: ||delta||_F.
        error_share: of the squared error of the component; nan where that is infinite.
        noise_floor: share of the delta's norm that storage rounding of tuned makes up.
    """

    name: str
    status: Status
    reason: str
    shape: tuple[int, ...]
    rank: int | None
    relative_error: Float
    mean_error: Float
    relative_mean_error: Float
    delta_norm: Float
    error_share: Float
    noise_floor: Float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BlockResult:
    """The tensors of one block of the network together (`down_blocks.1`, `mid_block`, `conv_in`, ...)."""

    block: str
    tensors: int
    relative_error: Float
    delta_share: Float
    error_share: Float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WeightReport:
    """Fidelity of an adapter to the change of a fine-tune, in weights.

    Attributes:
        base, tuned, adapter: names for the reader, without folders.
        counts: tensors per status; they add up to `tensors`.
        excluded_reasons: tensors per reason, of those left out.
        matched, failed: lora modules of the file that were compared, and names of the file that match nothing.
        success_rate: matched / (matched + failed); 0 for a file without lora modules.
        relative_error: the error: Frobenius, over all deltas of the component, those left out included.
        lora_error: the same over the lora modules alone.
        mean_module_error: Frobenius relative error, averaged over the lora modules.
        mean_relative_mean_error: the documented average relative error over the lora modules.
        mean_error: the documented average error, mean |delta - approximation| averaged over the lora modules.
        perfect: lora modules with a mean error below 0.001, the documented "perfect matches".
        left_out_share: share of the change, in squared norm, that lies in tensors the file leaves out.
        noise_floor: share of the change's norm that storage rounding of tuned makes up.
        bands: lora modules per documented band of the relative error.
        best, worst: lora modules by relative error; empty where there are none.
        made_for_output: the file says that it was made for the denoiser's output (calibrated or refined), of which the
            error of the weights says little.
    """

    base: str
    tuned: str
    adapter: str
    tensors: int
    counts: dict[str, int]
    excluded_reasons: dict[str, int]
    matched: int
    failed: tuple[str, ...]
    success_rate: Float
    relative_error: Float
    lora_error: Float
    mean_module_error: Float
    mean_relative_mean_error: Float
    mean_error: Float
    perfect: int
    left_out_share: Float
    noise_floor: Float
    bands: dict[str, int]
    best: str
    worst: str
    blocks: tuple[BlockResult, ...]
    rows: tuple[TensorResult, ...]
    made_for_output: bool = False

    def __repr__(self) -> str:
        """`<WeightReport: 1,676 tensors, relative error 54.8 %>`."""
        return f"<WeightReport: {self.summary}>"

    @property
    def summary(self) -> str:
        """Its size and its error, in a few words."""
        return f"{plural(self.tensors, 'tensor')}, relative error {100 * self.relative_error:.1f} %"

    @property
    def band(self) -> Band:
        """The band of the relative error."""
        return band_of(self.relative_error)


def compare_weights(
    pairing: Pairing,
    adapter: Adapter,
    *,
    base: FingerprintBuilder | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> Ledger:
    """Rebuild every delta from an adapter as stored: one ledger row per tensor of the pairing, in constant memory.

    Args:
        base: takes the digests of the base's tensors, which are at hand.
        on_tensor: called after each tensor, for a progress bar.
    """
    rows: list[LedgerRow] = []
    workspace = Workspace()

    def compare(pair: ParamPair) -> LedgerRow:
        if base is not None:
            base.add(pair.name, pairing.base.read(pair.name))
        return _row(pairing, adapter, pair, workspace)

    for row in ordered_map(compare, pairing):
        rows.append(row)
        on_tensor()
    return Ledger(tuple(rows))


def file_labels(base: Path, tuned: Path) -> tuple[str, str]:
    """Names of base and tuned for the reader: of the files, with their folders only where the files are namesakes."""
    if base.name != tuned.name:
        return base.name, tuned.name
    return f"{base.parent.name}/{base.name}", f"{tuned.parent.name}/{tuned.name}"


def _row(pairing: Pairing, adapter: Adapter, pair: ParamPair, workspace: Workspace) -> LedgerRow:
    name, shape = pair.name, pair.tuned.shape
    delta, sums = pairing.read_delta(name, workspace)
    found = measure_delta(delta.numel(), sums)
    if name in adapter.dense:
        measured = with_error(found, delta, adapter.dense[name].float())
        return LedgerRow(name, Status.DENSE, "stored dense", shape, None, measured)
    module = adapter.module_at(name)
    if module is not None:
        kind = "conv" if len(shape) == 4 else "linear"
        return LedgerRow(name, Status.LORA, kind, shape, module.rank, with_error(found, delta, module.factors()))
    if found.delta_abs == 0:
        return LedgerRow(name, Status.UNCHANGED, "equal in base and tuned", shape, None, found)
    if not pair.tuned.is_floating:  # a counter is not a weight
        return LedgerRow(name, Status.EXCLUDED, "not a floating point tensor", shape, None, Measure())
    return LedgerRow(name, Status.EXCLUDED, "not in the adapter", shape, None, found)


def weight_report(
    ledger: Ledger,
    *,
    base: str,
    tuned: str,
    adapter: str,
    failed: Sequence[ParamName] = (),
    made_for_output: bool = False,
) -> WeightReport:
    """Sum up a ledger; see `WeightReport` for the other arguments."""
    total = ledger.total()
    lora = ledger.of(Status.LORA)
    left_out = sum((row.measure for row in ledger.of(Status.EXCLUDED)), start=Measure())
    ordered = sorted(lora, key=lambda row: row.measure.relative_error)
    bands = [band_of(row.measure.relative_error) for row in lora]
    return WeightReport(
        base=base,
        tuned=tuned,
        adapter=adapter,
        tensors=len(ledger),
        counts=ledger.counts(),
        excluded_reasons=ledger.excluded_reasons(),
        matched=len(lora),
        failed=tuple(failed),
        success_rate=len(lora) / (len(lora) + len(failed)) if lora else 0.0,
        relative_error=total.relative_error,
        lora_error=sum((row.measure for row in lora), start=Measure()).relative_error,
        mean_module_error=_mean([row.measure.relative_error for row in lora]),
        mean_relative_mean_error=_mean([row.measure.relative_mean_error for row in lora]),
        mean_error=_mean([row.measure.mean_error for row in lora]),
        perfect=sum(row.measure.mean_error < 0.001 for row in lora),
        left_out_share=left_out.delta_sq / total.delta_sq if total.delta_sq else 0.0,
        noise_floor=total.noise_floor,
        bands={name: bands.count(name) for name, _, _ in BANDS},
        best=ordered[0].name if ordered else "",
        worst=ordered[-1].name if ordered else "",
        blocks=_blocks(ledger, total),
        rows=tuple(
            TensorResult(
                name=row.name,
                status=row.status,
                reason=row.reason,
                shape=row.shape,
                rank=row.rank,
                relative_error=row.measure.relative_error,
                mean_error=row.measure.mean_error,
                relative_mean_error=row.measure.relative_mean_error,
                delta_norm=math.sqrt(row.measure.delta_sq),
                error_share=row.measure.error_sq / total.error_sq if total.error_sq else 0.0,
                noise_floor=row.measure.noise_floor,
            )
            for row in ledger
        ),
        made_for_output=made_for_output,
    )


def block_of(name: str) -> str:
    """`down_blocks.1.attentions.0...` -> `down_blocks.1`; `mid_block.resnets.0...` -> `mid_block`."""
    first, _, rest = name.partition(".")
    second = rest.partition(".")[0]
    return f"{first}.{second}" if second.isdigit() else first


def _blocks(ledger: Ledger, total: Measure) -> tuple[BlockResult, ...]:
    grouped: dict[str, list[Measure]] = {}
    for row in ledger:
        grouped.setdefault(block_of(row.name), []).append(row.measure)
    joint = {block: sum(measures, start=Measure()) for block, measures in grouped.items()}
    return tuple(
        BlockResult(
            block=block,
            tensors=len(grouped[block]),
            relative_error=measure.relative_error,
            delta_share=measure.delta_sq / total.delta_sq if total.delta_sq else 0.0,
            error_share=measure.error_sq / total.error_sq if total.error_sq else 0.0,
        )
        for block, measure in joint.items()
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


Kind = Literal["linear", "conv", "dense"]

_FLOW = "time_embedding add_embedding class_embedding conv_in down_blocks mid_block up_blocks conv_norm_out conv_out"
_PLACES = {block: place for place, block in enumerate(_FLOW.split())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One status of the ledger; `details`: `linear: 741`, `conv: 51`, or reasons, each with its number."""

    status: Status
    tensors: int
    details: tuple[str, ...]
    change_share: float
    error_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankSummary:
    """The stored ranks of the lora modules; `full`: how many are as high as their matrix allows."""

    least: int
    median: int
    most: int
    full: int
    modules: int

    def __str__(self) -> str:
        span = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}, median {self.median}"
        return f"{span}; {plural(self.full, 'module')} of {self.modules:,} at full rank"


def delta_kind(row: TensorResult) -> Kind:
    """Return the kind of a tensor's delta, from its shape and, for a matrix, whether it is dense."""
    if row.status == Status.DENSE or not row.name.endswith("weight"):
        return "dense"
    return {2: "linear", 4: "conv"}.get(len(row.shape), "dense")  # pyright: ignore[reportReturnType]


def ledger_entries(report: WeightReport) -> tuple[LedgerEntry, ...]:
    """One entry for each status, in the ledger's order; tensors add up to `report.tensors`."""
    total = math.fsum(row.delta_norm**2 for row in report.rows)
    entries: list[LedgerEntry] = []
    for status in Status:
        rows = [row for row in report.rows if row.status == status]
        counts: Mapping[str, int] = Counter(delta_kind(row) if status == Status.LORA else row.reason for row in rows)
        if status == Status.EXCLUDED:
            counts = report.excluded_reasons
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        change = math.fsum(row.delta_norm**2 for row in rows)
        entries.append(
            LedgerEntry(
                status=status,
                tensors=report.counts.get(status.value, 0),
                details=tuple(f"{what}: {count:,}" for what, count in ordered),
                change_share=change / total if total else 0.0,
                error_share=sum(row.error_share for row in rows),
            )
        )
    return tuple(entries)


def lora_rows(report: WeightReport) -> list[TensorResult]:
    """Return the rows of the lora modules."""
    return [row for row in report.rows if row.status == Status.LORA]


def worst_modules(report: WeightReport, count: int) -> list[TensorResult]:
    """Return the lora modules with the highest relative error, the worst first."""
    return sorted(lora_rows(report), key=lambda row: -row.relative_error)[:count]


def extremes(report: WeightReport) -> list[tuple[str, str, float]]:
    """Return label, name and relative error of the best and the worst lora module, if there are any."""
    errors = {row.name: row.relative_error for row in report.rows}
    named = (("best", report.best), ("worst", report.worst))
    return [(label, name, errors.get(name, math.nan)) for label, name in named if name]


def rank_summary(report: WeightReport) -> RankSummary | None:
    """Return the ranks of a report; None for an adapter without lora modules."""
    ranked = [(row.rank, row.shape) for row in lora_rows(report) if row.rank is not None]
    if not ranked:
        return None
    ranks = sorted(rank for rank, _ in ranked)
    full = sum(rank >= rank_bound(shape) for rank, shape in ranked)
    return RankSummary(least=ranks[0], median=median_low(ranks), most=ranks[-1], full=full, modules=len(ranks))


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


def blocks_in_order(report: WeightReport) -> list[BlockResult]:
    """The blocks of a report in the order of `network_order`."""
    by_name = {block.block: block for block in report.blocks}
    return [by_name[name] for name in block_order(report.rows) if name in by_name]
