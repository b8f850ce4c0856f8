"""Lines and paragraphs that the texts of several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.report.schema import TensorResult

if TYPE_CHECKING:
    from lbm_lora.shards.corrupt import Skipped

FEW = 8
"""Names that are listed without --verbose."""


def layer_line(row: TensorResult) -> str:
    """The documented line of `--verbose`, one per layer."""
    kind = "DENSE" if row.status == "dense" else "CONV" if len(row.shape) == 4 else "LINEAR"
    if row.status not in ("lora", "dense"):
        return f"  - {row.name} | {row.status}: {row.reason}"
    rank = f"rank {row.rank}" if row.rank else "whole"
    return f"  ✓ {row.name} | {kind} | {rank} | error {100 * row.relative_error:.3f} %"


def left_out(skipped: "Sequence[Skipped]", verbose: bool) -> list[str]:
    """The first samples that cannot be used, or all of them."""
    lines = [f"  left out: {item.key}: {item.reason}" for item in skipped]
    shown = lines if verbose else lines[:FEW]
    more = [f"  and {len(lines) - len(shown)} more (--verbose lists them)"] if len(shown) < len(lines) else []
    return [*shown, *more]


def written(*paths: Path) -> str:
    return "\n".join(f"wrote {path} ({_size(path)})" for path in paths)


def file_of(paths: tuple[Path, ...], suffix: str) -> str:
    return str(next((path for path in paths if path.suffix == suffix), ""))


def paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:,.2f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"
