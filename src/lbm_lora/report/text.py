"""A report as plain text of at most 100 columns: what a terminal shows, and report.txt."""

import math

from lbm_lora.adapter import Status
from lbm_lora.errors import listing
from lbm_lora.factorize import rank_bound
from lbm_lora.fidelity.outputs import OutputComparison, VariantSummary, worst_first
from lbm_lora.fidelity.weights import (
    TensorResult,
    WeightReport,
    blocks_in_order,
    extremes,
    ledger_entries,
    rank_summary,
    worst_modules,
)
from lbm_lora.naming import ParamName, module_of
from lbm_lora.report.columns import (
    BY_STEPS,
    BY_TIMESTEP,
    DENOISER,
    LEDGER,
    ScoreRow,
    block_columns,
    file_columns,
    image_columns,
    image_of,
    score_columns,
    score_rows,
)
from lbm_lora.report.document import Report
from lbm_lora.report.table import Column, facts, numbers, paragraph, table, text_table, words
from lbm_lora.report.wording import (
    OF_ALL_WEIGHTS_ALIKE,
    OF_WEIGHTS_ALONE,
    decibel,
    dimensions,
    error_meaning,
    levels,
    noise_meaning,
    percent,
    plural,
    share,
    similarity,
    weights_verdict,
)

_MOST_BLOCKS = 30
_MOST_LINES = 48  # of the scores of single images, but three images at least
_TIMESTEPS_A_TABLE = 5


def full_text(report: Report, *, worst: int = 10) -> str:
    """The complete report: ledger, documented lines, total error, blocks, worst modules, outputs, notes.

    Args:
        worst: how many of the worst lora modules are listed.
    """
    weights, outputs = report.weights, report.outputs
    sections = [
        _head(weights),
        *([] if outputs is None else [_image_verdict(outputs), _outputs(outputs)]),
        ["Ledger", *text_table(LEDGER, ledger_entries(weights), foot=("sum", f"{weights.tensors:,}", "", "", ""))],
        _modules(weights),
        _total(weights, has_images=outputs is not None),
        _blocks(weights),
        _worst(weights, worst),
        *([] if outputs is None else [_images(outputs)]),
        _notes(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def short_text(report: Report) -> str:
    """Return a summary of about a dozen lines."""
    weights, outputs = report.weights, report.outputs
    counts = " + ".join(f"{count:,} {status}" for status, count in weights.counts.items())
    lines = [
        *([] if outputs is None else [_variant_fact(entry, outputs.reference) for entry in outputs.summary]),
        ("ledger", f"{counts} = {plural(weights.tensors, 'tensor')}"),
        *_ranks(weights),
        ("successfully tested", f"{weights.matched:,} of {weights.matched + len(weights.failed):,} modules found"),
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


def _modules(weights: WeightReport) -> list[str]:
    lines = [
        ("modules found", f"{weights.matched + len(weights.failed):,}"),
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
    found = [(label, percent(error), _module(name)) for label, name, error in extremes(weights)]
    failed = paragraph(f"failed to match: {listing(weights.failed)}") if weights.failed else []
    return ["Modules", *facts(lines), *table([words(), numbers(), words()], found), *failed]


def _error(weights: WeightReport) -> str:
    band = weights_verdict(weights.relative_error, made_for_output=weights.made_for_output)
    return f"{percent(weights.relative_error)}  {band}"


def _total(weights: WeightReport, *, has_images: bool) -> list[str]:
    """The error, over all deltas of the component, and what it means."""
    measure: list[str] = []
    if has_images:
        measure = paragraph(f"The images above are the measure. {OF_ALL_WEIGHTS_ALIKE}")
    elif weights.made_for_output:
        measure = paragraph(f"{OF_WEIGHTS_ALONE} To measure its output: lbm-lora validate with --images FOLDER.")
    lines = [("lora modules alone", percent(weights.lora_error)), _left_out(weights)]
    return [
        f"Total relative error of the weights: {_error(weights)}",
        *measure,
        *paragraph(f"Frobenius, over all {weights.tensors:,} deltas, those left out of the file included."),
        *paragraph(error_meaning(weights.relative_error)),
        *facts([*lines, ("noise floor", percent(weights.noise_floor))]),
        *paragraph(noise_meaning(weights.relative_error, weights.noise_floor), indent=4),
    ]


def _blocks(weights: WeightReport) -> list[str]:
    blocks = blocks_in_order(weights)
    if not blocks:
        return []
    largest = sorted(blocks, key=lambda block: -block.error_share)[:_MOST_BLOCKS]
    rows = [block for block in blocks if block in largest]
    head = "Blocks" if len(rows) == len(blocks) else f"{len(rows)} of {len(blocks)} blocks"
    return [head, *text_table(block_columns(blocks), rows)]


def _worst(weights: WeightReport, count: int) -> list[str]:
    columns = (
        Column[TensorResult](lambda row: percent(row.relative_error), "error"),
        Column[TensorResult](
            lambda row: f"{row.rank}/{rank_bound(row.shape)}" if row.rank is not None and row.shape else "", "rank"
        ),
        Column[TensorResult](lambda row: dimensions(row.shape), "shape", css=""),
        Column[TensorResult](lambda row: _module(row.name), "name", css=""),
    )
    rows = worst_modules(weights, count)
    head = "Worst module" if len(rows) == 1 else f"Worst {len(rows)} modules"
    return [head, *text_table(columns, rows)] if rows else []


def _notes(report: Report) -> list[str]:
    return [line for note in report.notes for line in paragraph(f"note: {note}", indent=0)]


def _ranks(weights: WeightReport) -> list[tuple[str, str]]:
    ranks = rank_summary(weights)
    return [] if ranks is None else [("ranks", str(ranks))]


def _left_out(weights: WeightReport) -> tuple[str, str]:
    tensors = plural(weights.counts.get(Status.EXCLUDED.value, 0), "tensor")
    return "left out of the file", f"{share(weights.left_out_share)} of the change (squared norm), in {tensors}"


def _module(name: str) -> str:
    return module_of(ParamName(name)) or name


def _image_verdict(outputs: OutputComparison) -> list[str]:
    """How near the LoRA's images come, at each number of steps: what a validation with images leads with."""
    variants = [scores.variant for scores in outputs.images[0].scores]
    lora = variants[min(1, len(variants) - 1)]  # the variant after the base
    base = {entry.steps: entry for entry in outputs.summary if entry.variant == variants[0] != lora}
    lines: list[str] = []
    for entry in (entry for entry in outputs.summary if entry.variant == lora):
        where = f"Images at {plural(entry.steps, 'step')}, {len(outputs.images)} against those of {outputs.reference}: "
        if entry.worst_psnr == math.inf:
            lines += paragraph(f"{where}equal in every value.", indent=0)
            continue
        alone = base.get(entry.steps)
        beside = f" The base alone: {decibel(alone.mean_psnr)} dB." if alone is not None else ""
        found = f"PSNR {decibel(entry.mean_psnr)} dB mean, {decibel(entry.worst_psnr)} worst ({entry.worst_image}, "
        lines += paragraph(f"{where}{found}off by {levels(entry.worst_psnr)}, RMS).{beside}", indent=0)
    return lines


def _outputs(outputs: OutputComparison) -> list[str]:
    """Each variant over all images, mean and worst: decoded images, denoiser, and files where there are several."""
    run = f"{plural(len(outputs.images), 'image')}, seed {outputs.seed}, {outputs.dtype} on {outputs.device}"
    network = f" LPIPS by {outputs.lpips}." if outputs.lpips else ""
    equal = any(entry.equal_images for entry in outputs.summary)
    left_out = " The mean PSNR leaves out images that are equal to the reference's." if equal else ""
    files = sorted(outputs.loras, key=lambda lora: lora.nbytes)
    return [
        *paragraph(f"Outputs against {outputs.reference}, on equal latents: {run}", indent=0),
        *paragraph(f"Mean and worst of the images, PSNR in dB.{network}{left_out}"),
        *text_table(score_columns(outputs), outputs.summary, group=BY_STEPS),
        "",
        *text_table(DENOISER, outputs.denoiser, group=BY_TIMESTEP),
        *(["", *text_table(file_columns(outputs), files)] if len(files) > 1 else []),
    ]


def _variant_fact(entry: VariantSummary, reference: str) -> tuple[str, str]:
    """A variant at a number of steps as a label and its scores."""
    psnr = f"PSNR {decibel(entry.mean_psnr)} dB mean, {decibel(entry.worst_psnr)} worst"
    if entry.worst_psnr == math.inf:
        psnr = f"PSNR infinite: equal to {reference}"
    return f"{entry.variant}, {plural(entry.steps, 'step')}", f"{psnr}; SSIM {similarity(entry.mean_ssim)} mean"


def _images(outputs: OutputComparison) -> list[str]:
    """Each image, the worst first: its scores for each variant and number of steps, and its denoiser errors."""
    rows = len(outputs.steps) * len(outputs.images[0].scores)
    shown = worst_first(outputs)[: max(3, _MOST_LINES // rows)]
    all_shown = len(shown) == len(outputs.images)
    head = "Each image" if all_shown else f"{len(shown)} of {len(outputs.images)} images (report.json has all)"
    lines = [f"{head}, lowest PSNR first", *text_table(image_columns(outputs), score_rows(shown), group=image_of)]
    errors = [row for row in score_rows(shown) if row.number == 0]
    for begin in range(0, len(outputs.timesteps), _TIMESTEPS_A_TABLE):
        columns = [
            Column[ScoreRow](lambda row: row.image.image, "image", css=""),
            Column[ScoreRow](lambda row: row.variant.variant, "denoiser error at", css=""),
            *(_error_at(place, outputs) for place in range(len(outputs.timesteps))[begin : begin + _TIMESTEPS_A_TABLE]),
        ]
        lines += ["", *text_table(columns, errors, group=image_of)]
    return lines


def _error_at(place: int, outputs: OutputComparison) -> Column[ScoreRow]:
    return Column(lambda row: percent(row.variant.denoiser[place].error), f"{outputs.timesteps[place]:g}")
