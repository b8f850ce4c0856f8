"""The ledger of an exact base, and how close it is to a tuned checkpoint, as plain text of at most 100 columns.

The values are made above this layer, so they are taken as what they look like (`BaseEntry`, `Baseline`); the types
of `lbm_lora.model.base` and `lbm_lora.model.baseline` fit.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.report.wording import WIDTH, labelled, percent, plural, printable, share, shortened, wrapped

_ACTIONS = ("copied", "cropped", "padded", "added", "dropped")
_MOST_REASONS = 4


@runtime_checkable
class BaseEntry(Protocol):
    """One tensor of a base's ledger."""

    @property
    def key(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def reason(self) -> str: ...


@runtime_checkable
class Baseline(Protocol):
    """A base measured against a tuned checkpoint."""

    @property
    def matched(self) -> str: ...
    @property
    def average_difference(self) -> float: ...
    @property
    def maximum_difference(self) -> float: ...
    @property
    def band(self) -> str: ...
    @property
    def unchanged(self) -> float: ...
    @property
    def unchanged_tensors(self) -> int: ...
    @property
    def noise_floor(self) -> float: ...
    @property
    def verdict(self) -> str: ...


def base_text(ledger: Sequence[BaseEntry], baseline: Baseline | None = None) -> str:
    """The counts of a base's ledger with their reasons, then the documented baseline lines where there are any."""
    parts = [_ledger(ledger)] + ([] if baseline is None else [_baseline(baseline)])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _ledger(ledger: Sequence[BaseEntry]) -> list[str]:
    head = f"{'Ledger of the base':<20}  denoiser    other      sum"
    lines = [head]
    for action in _ACTIONS:
        items = [item for item in ledger if item.action == action]
        counts = _counts(items)
        reasons = Counter(item.reason for item in items).most_common()
        spelt = [f"{count:,} {reason}" if len(reasons) > 1 else reason for reason, count in reasons[:_MOST_REASONS]]
        if len(reasons) > _MOST_REASONS:
            spelt.append(f"and {len(reasons) - _MOST_REASONS} more reasons")
        first, *rest = [shortened(printable(reason), WIDTH - len(head) - 2) for reason in spelt] or [""]
        lines.append(f"  {action:<18}  {counts}  {first}".rstrip())
        lines += [f"{'':<{len(head)}}  {reason}" for reason in rest]
    kept = [item for item in ledger if item.action != "dropped"]
    return [*lines, f"  {'in the base':<18}  {_counts(kept)}"]


def _counts(items: Sequence[BaseEntry]) -> str:
    denoiser = sum(item.key.startswith(DENOISER_PREFIX) for item in items)
    return f"{denoiser:>8,} {len(items) - denoiser:>8,} {len(items):>8,}"


def _baseline(baseline: Baseline) -> list[str]:
    same = f"{share(baseline.unchanged)} of the elements; {plural(baseline.unchanged_tensors, 'whole tensor')}"
    return [
        "Base against the tuned model",
        labelled("Matched denoiser keys", baseline.matched),
        labelled("Average difference", f"{baseline.average_difference:.8f}  {baseline.band}"),
        labelled("Maximum difference", f"{baseline.maximum_difference:.8f}"),
        labelled("unchanged", same),
        labelled("noise floor", f"{percent(baseline.noise_floor)} of the change is rounding of the tuned file"),
        *wrapped(printable(baseline.verdict), WIDTH),
    ]
