"""The result of the verb `resize`: a LoRA before and after."""

from dataclasses import dataclass
from pathlib import Path

from lbm_lora.adapter import Adapter, Status
from lbm_lora.combine import Resized
from lbm_lora.files import written_bytes
from lbm_lora.naming import leaf_of, module_of
from lbm_lora.ranks import FixedRanks, Prediction, RankRule, TrialImages
from lbm_lora.report.wording import plural


@dataclass(frozen=True, kw_only=True)
class ResizedLayer:
    """One parameter of the LoRA, before and after."""

    name: str
    status: Status
    reason: str
    rank_before: int | None
    """Rank in the LoRA that was resized; None for a dense delta."""
    rank: int | None
    relative_error: float
    """Error of the weights against the LoRA that was resized, as stored."""


@dataclass(frozen=True, kw_only=True)
class ResizeResult:
    """A resized LoRA and its error; of several, the first."""

    source: str
    """The LoRA that was resized: its file's name."""
    adapter: Path
    nbytes: int
    nbytes_before: int
    linear_rank: int
    """Highest rank of linear layers."""
    conv_rank: int
    """Highest rank of conv layers."""
    linear_rank_before: int
    conv_rank_before: int
    resize_error: float
    """Relative error of the weights against the LoRA that was resized, as stored, with all that was left out."""
    layers: tuple[ResizedLayer, ...]
    left_out: tuple[str, ...]
    """Parameters of the LoRA that are not in this one: by a pattern, or not worth their bytes."""
    notes: tuple[str, ...]
    predicted: Prediction
    """Expected error against the LoRA that was resized; measured if it was run at check points."""
    images: TrialImages | None = None
    """Its images against those of the LoRA that was resized."""
    sizes: tuple[Prediction, ...] = ()
    """Predictions for other sizes."""
    further: tuple["ResizeResult", ...] = ()
    """LoRAs of the other ranks or sizes."""


def result_of(adapter: Adapter, rule: RankRule, path: Path, found: Resized) -> ResizeResult:
    """Return the result of a written LoRA."""
    ranks = {name: module.rank for name, module in adapter.modules.items()}
    layers = tuple(
        ResizedLayer(
            name=row.name,
            status=row.status,
            reason=row.reason,
            rank_before=ranks.get(module_of(row.name)) if leaf_of(row.name) == "weight" else None,
            rank=row.rank,
            relative_error=row.measure.relative_error,
        )
        for row in found.ledger
    )
    return ResizeResult(
        source=adapter.path.name if adapter.path else adapter.label,
        adapter=path,
        nbytes=written_bytes(path),
        nbytes_before=adapter.nbytes if adapter.path is None else adapter.path.stat().st_size,
        linear_rank=found.rank,
        conv_rank=found.conv_rank,
        linear_rank_before=_highest(adapter, 2),
        conv_rank_before=_highest(adapter, 4),
        resize_error=found.ledger.total().relative_error,
        layers=layers,
        left_out=names_left_out(found),
        notes=notes(adapter, rule, found),
        predicted=found.predicted,
        images=found.chosen.images,
        sizes=found.sizes,
    )


def notes(adapter: Adapter, rule: RankRule, found: Resized) -> tuple[str, ...]:
    """Return what a user should know of a resized LoRA, one sentence each."""
    said: list[str] = []
    reasons = found.ledger.excluded_reasons()
    for reason, count in reasons.items():
        said.append(f"Left out {plural(count, 'delta')}: {reason}.")
    if found.kept and isinstance(rule, FixedRanks):
        said.append(
            f"{plural(found.kept, 'layer')} of {len(adapter.modules):,} had no more ranks than requested and "
            f"{'is' if found.kept == 1 else 'are'} kept as {'it is' if found.kept == 1 else 'they are'}."
        )
    if adapter.file_format != "native":
        back = f"`lbm-lora convert --to {adapter.file_format}` converts it back"
        said.append(f"The result is in lbm-lora's own format; {back}.")
    return tuple(said)


def names_left_out(found: Resized) -> tuple[str, ...]:
    """Return the parameters that are not in the file."""
    return tuple(row.name for row in found.ledger.of(Status.EXCLUDED))


def _highest(adapter: Adapter, dims: int) -> int:
    return max((module.rank for module in adapter.modules.values() if len(module.shape) == dims), default=0)
