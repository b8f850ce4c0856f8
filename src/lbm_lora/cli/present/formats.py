"""Result of the command that writes other formats: convert."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.adapter.formats.readers import READERS
from lbm_lora.cli.present.lines import paragraphs, written
from lbm_lora.errors import listing
from lbm_lora.naming import ParamName
from lbm_lora.report.wording import percent, plural

if TYPE_CHECKING:
    from lbm_lora.workflows.convert import ConvertResult


def convert(result: "ConvertResult", verbose: bool) -> str:
    """Return what the file holds, what was left out, and who reads it; with `verbose`, each parameter left out."""
    counts = [
        plural(result.modules, "module"),
        plural(result.biases, "bias", "biases"),
        plural(result.norms, "norm parameter"),
        *([plural(result.others, "other dense delta")] if result.others else []),
    ]
    lines = [f"Converted from {result.source} to {result.to}: {', '.join(counts)}."]
    if result.dropped:
        lines.append(f"Left out: {dropped(result.dropped, limit=len(result.dropped) if verbose else 2)}.")
    if result.reduced:
        error = percent(result.relative_error)
        lines.append(
            f"Approximated {plural(len(result.reduced), 'matrix', 'matrices')}; relative error of all changes {error}."
        )
    return paragraphs(
        "\n".join(lines), "\n".join(result.notes), f"Read by {READERS[result.to]}.", written(*result.files)
    )


def dropped(names: Sequence[ParamName], *, limit: int) -> str:
    """`10 biases and 512 norm parameters (conv_in.bias, conv_out.bias and 520 more)`."""
    norms = sum(map(is_norm, names))
    others = len(names) - norms
    kinds = [
        *([plural(others, "bias", "biases")] if others else []),
        *([plural(norms, "norm parameter")] if norms else []),
    ]
    return f"{' and '.join(kinds)} ({listing(names, limit=limit)})"
