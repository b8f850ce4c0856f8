"""Result of the command that writes other formats: convert."""

from typing import TYPE_CHECKING

from lbm_lora.adapter.formats.names import counted
from lbm_lora.adapter.formats.readers import calls_of
from lbm_lora.errors import listing
from lbm_lora.report.wording import percent, plural
from lbm_lora.verbs.lines import file_lines, paragraphs

if TYPE_CHECKING:
    from lbm_lora.workflows.convert import ConvertResult


def convert(result: "ConvertResult", verbose: bool) -> str:
    """Return what the file holds, what was left out, and who reads it; with `verbose`, each parameter left out."""
    counts = [
        plural(result.modules, "lora module"),
        plural(result.biases, "bias", "biases"),
        plural(result.norms, "norm parameter"),
        *([plural(result.others, "other dense delta")] if result.others else []),
    ]
    lines = [f"Converted from {result.source} to {result.to}: {', '.join(counts)}."]
    if result.dropped:
        names = listing(result.dropped, limit=len(result.dropped) if verbose else 2)
        lines.append(f"Left out: {counted(result.dropped)} ({names}).")
    if result.reduced:
        error = percent(result.relative_error)
        lines.append(
            f"Approximated {plural(len(result.reduced), 'matrix', 'matrices')}; relative error of all changes {error}."
        )
    return paragraphs(
        "\n".join(lines), "\n".join(result.notes), f"Read by {calls_of(result.to)}.", file_lines(*result.files)
    )
