"""The tables that a report has on the screen and on the page: each described once, as columns over rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from markupsafe import Markup

from lbm_lora.factorize import rank_bound
from lbm_lora.fidelity.outputs import (
    DenoiserSummary,
    ImageComparison,
    ImageScore,
    LoraFile,
    OutputComparison,
    VariantScores,
    VariantSummary,
    has_masks,
)
from lbm_lora.fidelity.weights import BlockResult, LedgerEntry, TensorResult, band_of, delta_kind
from lbm_lora.report.table import Column
from lbm_lora.report.wording import (
    decibel,
    dimensions,
    distance,
    megabytes,
    percent,
    plural,
    printable,
    share,
    similarity,
)

BY_STEPS, BY_TIMESTEP = attrgetter("steps"), attrgetter("timestep")
"""What the rows of a group have in common, in the tables of scores and of the denoiser."""

BARS = Markup('<span class="hidden">bars</span>')
"""The head of a column of bars."""


def bars(**parts: float) -> Markup:
    """Bars, one above the other: kind -> share of the column's width."""
    bar = Markup('<span class="fill-{}" style="width: {:.2f}%"></span>')
    drawn = Markup().join(bar.format(kind, 100 * part) for kind, part in parts.items())
    return Markup('<div aria-hidden="true">{}</div>').format(drawn)


def dotted(kind: str, text: str) -> Markup:
    """A text behind a dot in the colour of a band or a status."""
    return Markup('<i class="dot fill-{}"></i>{}').format(kind, text)


def breakable(name: str) -> Markup:
    """A dotted name that may be broken behind its dots."""
    return Markup(".<wbr>").join(printable(name).split("."))


LEDGER: Sequence[Column[LedgerEntry]] = (
    Column(lambda e: e.status.value, "status", "", "", lambda e: dotted(e.status.value, e.status.value)),
    Column(lambda e: f"{e.tensors:,}", "tensors"),
    Column(lambda e: share(e.change_share), "of the change"),
    Column(lambda e: share(e.error_share), "of the error"),
    Column(lambda e: ", ".join(e.details), "", "what, or why", ""),
)


def block_columns(blocks: Sequence[BlockResult]) -> Sequence[Column[BlockResult]]:
    """The blocks of a network, on the page with bars as parts of the longest one."""
    longest = max((max(b.delta_share, _finite(b.error_share)) for b in blocks), default=0.0) or 1.0

    def error(b: BlockResult) -> Markup:
        return dotted(band_of(b.relative_error), percent(b.relative_error))

    def shares(b: BlockResult) -> Markup:
        return bars(change=b.delta_share / longest, error=_finite(b.error_share) / longest)

    return (
        Column(lambda b: b.block, "block", css=""),
        Column(lambda b: f"{b.tensors:,}", "tensors"),
        Column(lambda b: percent(b.relative_error), "relative error", markup=error),
        Column(lambda b: "", None, BARS, "bars", shares),
        Column(lambda b: share(b.delta_share), "of the change"),
        Column(lambda b: share(b.error_share), "of the error"),
    )


def _status(row: TensorResult) -> Markup:
    return Markup('<span title="{}">{}</span>').format(printable(row.reason), row.status.value)


def _rank(row: TensorResult) -> Markup:
    if row.rank is None or not row.shape:
        return Markup()
    return Markup("{}<small>/{}</small>").format(row.rank, rank_bound(row.shape))


def _error(row: TensorResult) -> Markup:
    kind = row.status.value if row.status in ("excluded", "unchanged") else band_of(row.relative_error)
    return dotted(kind, percent(row.relative_error))


TENSORS: Sequence[Column[TensorResult]] = (
    Column(lambda r: r.name, "name", css="", markup=lambda r: breakable(r.name)),
    Column(lambda r: r.status.value, "status", css="", markup=_status),
    Column(delta_kind, "kind", css=""),
    Column(lambda r: dimensions(r.shape), "shape", value=lambda r: math.prod(r.shape)),
    Column(lambda r: "", "rank", markup=_rank, value=lambda r: math.nan if r.rank is None else r.rank),
    Column(lambda r: "", "relative error", markup=_error, value=lambda r: r.relative_error),
    Column(lambda r: percent(r.relative_mean_error), "mean absolute", value=lambda r: r.relative_mean_error),
    Column(lambda r: f"{r.mean_error:.8f}", "mean error", value=lambda r: r.mean_error),
    Column(lambda r: share(r.error_share), "of the error", value=lambda r: r.error_share),
    Column(lambda r: percent(r.noise_floor), "noise floor", value=lambda r: r.noise_floor),
)


def score_columns(outputs: OutputComparison) -> Sequence[Column[VariantSummary]]:
    """The decoded images of each variant at each number of steps, mean and worst."""
    lpips = (
        Column[VariantSummary](lambda e: distance(e.mean_lpips), "LPIPS", f"LPIPS ({outputs.lpips}), mean"),
        Column[VariantSummary](lambda e: distance(e.worst_lpips), "worst"),
    )
    return (
        Column(lambda e: str(e.steps), "steps"),
        Column(lambda e: e.variant, "variant", css=""),
        Column(lambda e: decibel(e.mean_psnr), "PSNR", "PSNR, mean (dB)", "n strong"),
        Column(lambda e: decibel(e.worst_psnr), "worst", "worst (dB)"),
        Column(lambda e: similarity(e.mean_ssim), "SSIM", "SSIM, mean"),
        Column(lambda e: similarity(e.worst_ssim), "worst"),
        *(lpips if outputs.lpips else ()),
        Column(lambda e: "" if e.worst_psnr == math.inf else e.worst_image, "worst image", css=""),
    )


DENOISER: Sequence[Column[DenoiserSummary]] = (
    Column(lambda e: f"{e.timestep:g}", "timestep"),
    Column(lambda e: e.variant, "variant", css=""),
    Column(lambda e: percent(e.mean_error), "denoiser error", "error, mean", "n strong"),
    Column(lambda e: percent(e.worst_error), "worst"),
    Column(lambda e: e.worst_image if e.worst_error else "", "worst image", css=""),
)


def file_columns(outputs: OutputComparison) -> Sequence[Column[LoraFile]]:
    """The files behind the variants, with the PSNR of their images at the fewest steps."""
    summary = {entry.variant: entry for entry in outputs.summary if entry.steps == outputs.steps[0]}
    at = f"PSNR, {plural(outputs.steps[0], 'step')}"
    return (
        Column(lambda f: f.variant, "variant", css=""),
        Column(lambda f: megabytes(f.nbytes), "bytes", "size"),
        Column(lambda f: decibel(summary[f.variant].mean_psnr), at, f"{at}, mean (dB)", "n strong"),
        Column(lambda f: decibel(summary[f.variant].worst_psnr), "worst", "worst (dB)"),
        Column(lambda f: f.method, "ranks", None, ""),
        Column(lambda f: f.series, None, "kind", ""),
        Column(lambda f: f.ranks, None, "ranks", ""),
        Column(lambda f: f.file, "file", css=""),
    )


class ScoreRow(NamedTuple):
    """One variant of one image at one number of steps; `of_variant` and `number`: places of the two."""

    image: ImageComparison
    variant: VariantScores
    score: ImageScore
    of_variant: int
    number: int


def score_rows(images: Sequence[ImageComparison]) -> Iterator[ScoreRow]:
    """Yield a row for each variant and number of steps of each image."""
    for image in images:
        for index, variant in enumerate(image.scores):
            for number, score in enumerate(variant.images):
                yield ScoreRow(image, variant, score, index, number)


def image_of(row: ScoreRow) -> int:
    """What rows of one image share; two images may have one name."""
    return id(row.image)


def image_columns(outputs: OutputComparison) -> Sequence[Column[ScoreRow]]:
    """The scores of single images, on the page with the errors of the denoiser."""

    def size(row: ScoreRow, times: str = "x") -> str:
        return f"{row.image.width}{times}{row.image.height}"

    def name(row: ScoreRow) -> Markup:
        return Markup("{}<small>{}</small>").format(printable(row.image.image), size(row, "\u202f\u00d7\u202f"))

    def error_at(place: int) -> Callable[[ScoreRow], str]:
        return lambda row: "" if row.number else percent(row.variant.denoiser[place].error)

    lpips = (Column[ScoreRow](lambda r: distance(r.score.lpips), "LPIPS"),)
    masked = (
        Column[ScoreRow](lambda r: decibel(r.score.mask_psnr), "mask PSNR", "PSNR in mask"),
        Column[ScoreRow](lambda r: similarity(r.score.mask_ssim), "mask SSIM", "SSIM in mask"),
    )
    return (
        Column(lambda r: r.image.image, "image", "", "", name),
        Column(lambda r: "" if r.of_variant or r.number else size(r), "size", None),
        Column(lambda r: "" if r.number else r.variant.variant, "variant", css=""),
        Column(lambda r: str(r.score.steps), "steps"),
        Column(lambda r: decibel(r.score.psnr), "PSNR", "PSNR, dB"),
        Column(lambda r: similarity(r.score.ssim), "SSIM"),
        *(lpips if outputs.lpips else ()),
        *(masked if has_masks(outputs) else ()),
        *(Column(error_at(place), None, f"error at {at:g}") for place, at in enumerate(outputs.timesteps)),
    )


def _finite(part: float) -> float:
    """A share that can be drawn: where an error is infinite, shares of it are no numbers."""
    return part if 0 <= part <= 1 else 0.0
