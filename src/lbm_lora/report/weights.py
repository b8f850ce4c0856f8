"""The weights part of a report: a ledger of measured deltas summed up by tensor, by block and in total."""

import math
from collections.abc import Sequence

from pydantic.dataclasses import dataclass

from lbm_lora.adapter import Ledger, LedgerRow, Status
from lbm_lora.errors import plural
from lbm_lora.factorize import Measure
from lbm_lora.naming import ParamName
from lbm_lora.report.values import BANDS, STRICT, Band, Float, band_of


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


def weight_report(
    ledger: Ledger,
    *,
    base: str,
    tuned: str,
    adapter: str,
    failed: Sequence[ParamName] = (),
    made_for_output: bool = False,
) -> WeightReport:
    """Sum up a ledger.

    Args:
        base, tuned, adapter: names for the reader, without folders.
        failed: names of the adapter that match no tensor.
        made_for_output: see `WeightReport`.
    """
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
        rows=tuple(_tensor(row, total) for row in ledger),
        made_for_output=made_for_output,
    )


def block_of(name: str) -> str:
    """`down_blocks.1.attentions.0...` -> `down_blocks.1`; `mid_block.resnets.0...` -> `mid_block`."""
    first, _, rest = name.partition(".")
    second = rest.partition(".")[0]
    return f"{first}.{second}" if second.isdigit() else first


def _tensor(row: LedgerRow, total: Measure) -> TensorResult:
    return TensorResult(
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


def _blocks(ledger: Ledger, total: Measure) -> tuple[BlockResult, ...]:
    grouped: dict[str, list[Measure]] = {}
    for row in ledger:
        grouped.setdefault(block_of(row.name), []).append(row.measure)
    results: list[BlockResult] = []
    for block, measures in grouped.items():
        joint = sum(measures, start=Measure())
        results.append(
            BlockResult(
                block=block,
                tensors=len(measures),
                relative_error=joint.relative_error,
                delta_share=joint.delta_sq / total.delta_sq if total.delta_sq else 0.0,
                error_share=joint.error_sq / total.error_sq if total.error_sq else 0.0,
            )
        )
    return tuple(results)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
