"""A report as plain text of at most 100 columns: what a terminal shows after `extract` and `validate`."""

from collections.abc import Sequence

from lbm_lora.errors import listing
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import ParamName, module_of
from lbm_lora.report.digest import (
    block_order,
    error_named,
    ledger_entries,
    rank_summary,
    worst_modules,
)
from lbm_lora.report.outputs_text import image_lines, outputs_lines, short_output_line
from lbm_lora.report.schema import Report, TensorResult, WeightReport
from lbm_lora.report.wording import (
    WIDTH,
    error_meaning,
    labelled,
    noise_meaning,
    percent,
    plural,
    printable,
    share,
    shortened,
    size,
    verdict,
    wrapped,
)

_MOST_BLOCKS = 30


def full_text(report: Report, *, worst: int = 10) -> str:
    """The whole report: ledger, documented lines, total error, blocks, worst modules, outputs, notes.

    Args:
        worst: how many of the worst lora modules are listed.
    """
    weights = report.weights
    parts = [
        _head(weights),
        _ledger(weights),
        _modules(weights),
        _total(weights),
        _blocks(weights),
        _worst(weights, worst),
        *([] if report.outputs is None else [outputs_lines(report.outputs), image_lines(report.outputs)]),
        _notes(report.notes),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def short_text(report: Report) -> str:
    """The same in about a dozen lines."""
    weights = report.weights
    counts = " + ".join(f"{count:,} {status}" for status, count in weights.counts.items())
    ranks = rank_summary(weights)
    lines = [
        *_head(weights),
        labelled("ledger", f"{counts} = {plural(weights.tensors, 'tensor')}"),
        *([] if ranks is None else [labelled("ranks", str(ranks))]),
        labelled("successfully tested", f"{weights.matched:,} of {_found(weights):,} modules found"),
        labelled("perfect matches (error < 0.001)", f"{weights.perfect:,} of {weights.matched:,}"),
        labelled("average error", f"{weights.mean_error:.8f}"),
        labelled("average relative error", percent(weights.mean_relative_mean_error)),
        labelled("total relative error", f"{percent(weights.relative_error)}  {verdict(weights.relative_error)}"),
        labelled("left out of the file", _left_out(weights)),
        labelled("noise floor", percent(weights.noise_floor)),
    ]
    if report.outputs is not None:
        lines += [short_output_line(entry, report.outputs.reference) for entry in report.outputs.summary]
    return "\n".join([*lines, *_notes(report.notes)])


def _head(weights: WeightReport) -> list[str]:
    adapter, base, tuned = (printable(name) for name in (weights.adapter, weights.base, weights.tuned))
    return wrapped(f"LoRA {adapter}: {base} + LoRA against {tuned}", WIDTH, indent="")


def _ledger(weights: WeightReport) -> list[str]:
    lines = ["Ledger           tensors   of the change   of the error"]
    indent = " " * len(lines[0])
    for entry in ledger_entries(weights):
        details = [printable(detail) for detail in entry.details]
        if len(", ".join(details)) <= WIDTH - len(indent) - 2:
            details = [", ".join(details)]
        first, *rest = details
        counts = f"{entry.tensors:>9,}  {share(entry.change_share):>14}  {share(entry.error_share):>13}"
        lines.append(f"  {entry.status:<12} {counts}  {shortened(first, WIDTH - len(indent) - 2)}".rstrip())
        lines += [line for detail in rest for line in wrapped(detail, WIDTH, indent=indent + "  ")]
    return [*lines, f"  {'sum':<12} {weights.tensors:>9,}"]


def _modules(weights: WeightReport) -> list[str]:
    ranks = rank_summary(weights)
    bands = ", ".join(f"{count:,} {name}" for name, count in weights.bands.items())
    lines = [
        "Modules",
        labelled("modules found", f"{_found(weights):,}"),
        labelled("successfully tested", f"{weights.matched:,}"),
        labelled("failed to match", f"{len(weights.failed):,}"),
        labelled("success rate", f"{100 * weights.success_rate:.1f} %"),
        labelled("Perfect matches (error < 0.001)", f"{weights.perfect:,} of {weights.matched:,}"),
        labelled("average error", f"{weights.mean_error:.8f}"),
        labelled("average relative error", f"{percent(weights.mean_relative_mean_error)} (mean absolute)"),
        labelled("", f"{percent(weights.mean_module_error)} (Frobenius)"),
        labelled("bands", bands),
    ]
    if ranks is not None:
        lines.append(labelled("ranks", str(ranks)))
    for label, name in (("best", weights.best), ("worst", weights.worst)):
        if name:
            error = percent(error_named(weights, name))
            lines.append(f"  {label:<7}{error:>9}  {_module(name, WIDTH - 20)}")
    if weights.failed:
        lines += wrapped(printable(f"failed to match: {listing(weights.failed)}"), WIDTH)
    return lines


def _total(weights: WeightReport) -> list[str]:
    """The error, over all deltas of the component, and what it means."""
    return [
        f"Total relative error: {percent(weights.relative_error)}  {verdict(weights.relative_error)}",
        *wrapped(f"Frobenius, over all {weights.tensors:,} deltas, those left out of the file included.", WIDTH),
        *wrapped(error_meaning(weights.relative_error), WIDTH),
        labelled("lora modules alone", percent(weights.lora_error)),
        labelled("left out of the file", _left_out(weights)),
        labelled("noise floor", percent(weights.noise_floor)),
        *wrapped(noise_meaning(weights.relative_error, weights.noise_floor), WIDTH, indent="    "),
    ]


def _blocks(weights: WeightReport) -> list[str]:
    by_name = {block.block: block for block in weights.blocks}
    blocks = [by_name[name] for name in block_order(weights.rows) if name in by_name]
    shown, head = blocks, "Blocks"
    if len(blocks) > _MOST_BLOCKS:
        largest = sorted(blocks, key=lambda block: -block.error_share)[:_MOST_BLOCKS]
        shown = [block for block in blocks if block in largest]
        head = f"{_MOST_BLOCKS} of {len(blocks)} blocks"
    lines = [f"{head:<32} tensors   relative error   of the change   of the error"]
    lines += [
        f"  {shortened(printable(block.block), 30):<30} {block.tensors:>7,} {percent(block.relative_error):>16} "
        f"{share(block.delta_share):>15} {share(block.error_share):>14}"
        for block in shown
    ]
    return lines if shown else []


def _worst(weights: WeightReport, count: int) -> list[str]:
    rows = worst_modules(weights, count)
    if not rows:
        return []
    head = "Worst module" if len(rows) == 1 else f"Worst {len(rows)} modules"
    lines = [head, f"  {'error':>8}  {'rank':>9}  {'shape':<13}  name"]
    return lines + [
        f"  {percent(row.relative_error):>8}  {_rank(row):>9}  {size(row.shape):<13}  {_module(row.name, WIDTH - 38)}"
        for row in rows
    ]


def _notes(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in wrapped(printable(f"note: {note}"), WIDTH, indent="")]


def _found(weights: WeightReport) -> int:
    return weights.matched + len(weights.failed)


def _left_out(weights: WeightReport) -> str:
    count = weights.counts.get("excluded", 0)
    return f"{share(weights.left_out_share)} of the change (squared norm), in {plural(count, 'tensor')}"


def _rank(row: TensorResult) -> str:
    return f"{row.rank}/{rank_bound(row.shape)}" if row.rank is not None and row.shape else ""


def _module(name: str, width: int) -> str:
    return shortened(printable(module_of(ParamName(name)) or name), width)
