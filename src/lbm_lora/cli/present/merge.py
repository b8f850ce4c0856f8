"""The result of merge: the LoRAs that went in, and what came out."""

from typing import TYPE_CHECKING

from lbm_lora.report.table import numbers, table, words
from lbm_lora.report.wording import percent, plural
from lbm_lora.verbs.lines import file_lines, paragraphs

if TYPE_CHECKING:
    from lbm_lora.workflows.merge import MergeResult


def merge(result: "MergeResult", _: bool) -> str:
    """Return the LoRAs with their scales, the merged one and its error, and of a chain its base."""
    columns = [words("LoRA"), numbers("scale"), numbers("lora modules"), numbers("dense deltas")]
    rows = [[one.path.name, f"{one.lora_scale}", f"{one.modules:,}", f"{one.dense:,}"] for one in result.loras]
    lowest, highest = result.ranks
    span = "" if not highest else f" of rank {highest}" if lowest == highest else f" of rank {lowest} to {highest}"
    how = "Their sum" if result.method == "sum" else f"Merged by {result.method}"
    lines = [
        f"{how}: {plural(result.modules, 'lora module')}{span}, {plural(result.dense, 'dense delta')}; "
        f"{result.seconds:.1f} s.",
        f"Relative error of what is stored: {percent(result.relative_error)}.",
    ]
    if result.left_out:
        lines.append(f"{plural(result.left_out, 'delta')} left out: zero at these scales, or not worth the bytes.")
    return paragraphs(
        "\n".join([f"Merged {plural(len(result.loras), 'LoRA')}", *table(columns, rows)]),
        "\n".join(lines),
        _fit(result),
        _chain(result),
        file_lines(result.adapter),
    )


def _fit(result: "MergeResult") -> str:
    """Return what fitting the scales gained."""
    if result.fit is None:
        return ""
    before, after = result.fit.before, result.fit.after
    pairs = ((before.typical, after.typical), (before.worst, after.worst))
    typical, worst = (tuple(map(percent, pair)) for pair in pairs)
    return (
        f"Scales fitted on {plural(result.fit.images, 'image')}. Error of the denoiser's output: typical "
        f"{typical[0]} -> {typical[1]}, worst {worst[0]} -> {worst[1]}."
    )


def _chain(result: "MergeResult") -> str:
    """Say what a merged chain is relative to."""
    if not result.chain:
        return ""
    first, *further = result.chain
    return (
        f"It is for the base of {first}: {', then '.join(further)} was made on the tuned model that {first} leads to. "
        "Their sum comes as close to that model as the extraction does."
    )
