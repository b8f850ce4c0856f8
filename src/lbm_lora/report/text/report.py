"""The text of a report: of its weights here, of its outputs in `outputs`."""

from lbm_lora.adapter import Status
from lbm_lora.errors import listing
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import ParamName, module_of
from lbm_lora.report.digest import block_order, error_named, ledger_entries, rank_summary, worst_modules
from lbm_lora.report.document import Report
from lbm_lora.report.text.outputs import image_lines, image_verdict, output_facts, output_lines
from lbm_lora.report.text.tables import facts, numbers, paragraph, table, words
from lbm_lora.report.weights import TensorResult, WeightReport
from lbm_lora.report.wording import (
    OF_ALL_WEIGHTS_ALIKE,
    OF_WEIGHTS_ALONE,
    dimensions,
    error_meaning,
    noise_meaning,
    percent,
    plural,
    share,
    weights_verdict,
)

_MOST_BLOCKS = 30


def full_text(report: Report, *, worst: int = 10) -> str:
    """The complete report: ledger, documented lines, total error, blocks, worst modules, outputs, notes.

    Args:
        worst: how many of the worst lora modules are listed.
    """
    weights = report.weights
    images = [] if report.outputs is None else [image_verdict(report.outputs), output_lines(report.outputs)]
    sections = [
        _head(weights),
        *images,
        _ledger(weights),
        _modules(weights),
        _total(weights, has_images=report.outputs is not None),
        _blocks(weights),
        _worst(weights, worst),
        *([] if report.outputs is None else [image_lines(report.outputs)]),
        _notes(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def short_text(report: Report) -> str:
    """Return a summary of about a dozen lines."""
    weights = report.weights
    counts = " + ".join(f"{count:,} {status}" for status, count in weights.counts.items())
    lines = [
        *([] if report.outputs is None else output_facts(report.outputs)),
        ("ledger", f"{counts} = {plural(weights.tensors, 'tensor')}"),
        *_ranks(weights),
        ("successfully tested", f"{weights.matched:,} of {_found(weights):,} modules found"),
        ("perfect matches (error < 0.001)", f"{weights.perfect:,} of {weights.matched:,}"),
        ("average error", f"{weights.mean_error:.8f}"),
        ("average relative error", percent(weights.mean_relative_mean_error)),
        ("total relative error", _error(weights)),
        _left_out(weights),
        ("noise floor", percent(weights.noise_floor)),
    ]
    return "\n".join([*_head(weights), *facts(lines), *_notes(report)])


def _head(weights: WeightReport) -> list[str]:
    return paragraph(f"LoRA {weights.adapter}: {weights.base} + LoRA against {weights.tuned}", indent=0)


def _ledger(weights: WeightReport) -> list[str]:
    columns = [words("status"), numbers("tensors"), numbers("of the change"), numbers("of the error"), words()]
    rows = [
        (
            entry.status.value,
            f"{entry.tensors:,}",
            share(entry.change_share),
            share(entry.error_share),
            ", ".join(entry.details),
        )
        for entry in ledger_entries(weights)
    ]
    return ["Ledger", *table(columns, [*rows, ("sum", f"{weights.tensors:,}", "", "", "")])]


def _modules(weights: WeightReport) -> list[str]:
    lines = [
        ("modules found", f"{_found(weights):,}"),
        ("successfully tested", f"{weights.matched:,}"),
        ("failed to match", f"{len(weights.failed):,}"),
        ("success rate", f"{100 * weights.success_rate:.1f} %"),
        ("Perfect matches (error < 0.001)", f"{weights.perfect:,} of {weights.matched:,}"),
        ("average error", f"{weights.mean_error:.8f}"),
        ("average relative error", f"{percent(weights.mean_relative_mean_error)} (mean absolute)"),
        ("", f"{percent(weights.mean_module_error)} (Frobenius)"),
        ("bands", ", ".join(f"{count:,} {name}" for name, count in weights.bands.items())),
        *_ranks(weights),
    ]
    extremes = [
        (label, percent(error_named(weights, name)), _module(name))
        for label, name in (("best", weights.best), ("worst", weights.worst))
        if name
    ]
    failed = paragraph(f"failed to match: {listing(weights.failed)}") if weights.failed else []
    return ["Modules", *facts(lines), *table([words(), numbers(), words()], extremes), *failed]


def _error(weights: WeightReport) -> str:
    band = weights_verdict(weights.relative_error, made_for_output=weights.made_for_output)
    return f"{percent(weights.relative_error)}  {band}"


def _measure(weights: WeightReport, *, has_images: bool) -> list[str]:
    """Explain what the weight error means for images."""
    if has_images:
        return paragraph(f"The images above are the measure. {OF_ALL_WEIGHTS_ALIKE}")
    if weights.made_for_output:
        return paragraph(f"{OF_WEIGHTS_ALONE} To measure its output: lbm-lora validate with --images FOLDER.")
    return []


def _total(weights: WeightReport, *, has_images: bool) -> list[str]:
    """The error, over all deltas of the component, and what it means."""
    return [
        f"Total relative error of the weights: {_error(weights)}",
        *_measure(weights, has_images=has_images),
        *paragraph(f"Frobenius, over all {weights.tensors:,} deltas, those left out of the file included."),
        *paragraph(error_meaning(weights.relative_error)),
        *facts(
            [
                ("lora modules alone", percent(weights.lora_error)),
                _left_out(weights),
                ("noise floor", percent(weights.noise_floor)),
            ]
        ),
        *paragraph(noise_meaning(weights.relative_error, weights.noise_floor), indent=4),
    ]


def _blocks(weights: WeightReport) -> list[str]:
    by_name = {block.block: block for block in weights.blocks}
    blocks = [by_name[name] for name in block_order(weights.rows) if name in by_name]
    if not blocks:
        return []
    largest = sorted(blocks, key=lambda block: -block.error_share)[:_MOST_BLOCKS]
    columns = [words("block"), *map(numbers, ("tensors", "relative error", "of the change", "of the error"))]
    rows = [
        (
            block.block,
            f"{block.tensors:,}",
            percent(block.relative_error),
            share(block.delta_share),
            share(block.error_share),
        )
        for block in blocks
        if block in largest
    ]
    head = "Blocks" if len(rows) == len(blocks) else f"{len(rows)} of {len(blocks)} blocks"
    return [head, *table(columns, rows)]


def _worst(weights: WeightReport, count: int) -> list[str]:
    rows = [
        (percent(row.relative_error), _rank(row), dimensions(row.shape), _module(row.name))
        for row in worst_modules(weights, count)
    ]
    if not rows:
        return []
    head = "Worst module" if len(rows) == 1 else f"Worst {len(rows)} modules"
    return [head, *table([numbers("error"), numbers("rank"), words("shape"), words("name")], rows)]


def _notes(report: Report) -> list[str]:
    return [line for note in report.notes for line in paragraph(f"note: {note}", indent=0)]


def _found(weights: WeightReport) -> int:
    return weights.matched + len(weights.failed)


def _ranks(weights: WeightReport) -> list[tuple[str, str]]:
    ranks = rank_summary(weights)
    return [] if ranks is None else [("ranks", str(ranks))]


def _left_out(weights: WeightReport) -> tuple[str, str]:
    count = weights.counts.get(Status.EXCLUDED.value, 0)
    tensors = plural(count, "tensor")
    return "left out of the file", f"{share(weights.left_out_share)} of the change (squared norm), in {tensors}"


def _rank(row: TensorResult) -> str:
    return f"{row.rank}/{rank_bound(row.shape)}" if row.rank is not None and row.shape else ""


def _module(name: str) -> str:
    return module_of(ParamName(name)) or name
