"""Lines and paragraphs that the texts of several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.adapter import Status
from lbm_lora.errors import OutputError
from lbm_lora.fidelity.weights import TensorResult, WeightReport
from lbm_lora.report.wording import megabytes, printable

if TYPE_CHECKING:
    from lbm_lora.adapter.twins import Twin
    from lbm_lora.shards.samples import Skipped

_FEW = 8  # samples listed without --verbose


def layer_lines(report: WeightReport, verbose: bool) -> str:
    """Return the documented lines of --verbose, one per layer; empty without it."""
    return "\n".join(map(_layer_line, report.rows)) if verbose else ""


def skipped_lines(skipped: "Sequence[Skipped]", verbose: bool, *, indent: int = 2) -> list[str]:
    """Return the unusable samples with their reasons: the first of them, or all with --verbose."""
    shown = skipped if verbose else skipped[:_FEW]
    lines = [printable(f"left out: {item.key}: {item.reason}") for item in shown]
    if len(shown) < len(skipped):
        lines.append(f"and {len(skipped) - len(shown):,} more (--verbose lists them)")
    return [" " * indent + line for line in lines]


def file_lines(*paths: Path) -> str:
    """Return the written files, with their sizes.

    Raises:
        OutputError: somebody has removed one since.
    """
    return "\n".join(printable(f"wrote {path} ({megabytes(_size(path))})") for path in paths)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise OutputError(f"{path} was removed after it was written. Run the command again.") from None


def twin_files(twins: "Sequence[Twin]") -> list[Path]:
    """Return the files of a LoRA in other formats."""
    return [path for twin in twins for path in twin.files]


def paragraphs(*parts: str) -> str:
    """Join the parts that are not empty, with an empty line between them."""
    return "\n\n".join(part for part in parts if part)


def _layer_line(row: TensorResult) -> str:
    if row.status not in (Status.LORA, Status.DENSE):
        return f"  - {row.name} | {row.status}: {row.reason}"
    kind = "DENSE" if row.status == Status.DENSE else "CONV" if len(row.shape) == 4 else "LINEAR"
    rank = f"rank {row.rank}" if row.rank else "no rank"
    return f"  ✓ {row.name} | {kind} | {rank} | error {100 * row.relative_error:.3f} %"
