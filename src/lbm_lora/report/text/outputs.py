"""The outputs part of a report's text: each variant over all images, then each image."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence

from lbm_lora.report.outputs import (
    ImageComparison,
    ImageScore,
    OutputComparison,
    VariantSummary,
    has_masks,
    worst_first,
)
from lbm_lora.report.text.tables import numbers, paragraph, table, words
from lbm_lora.report.wording import decibel, distance, levels, megabytes, percent, plural, similarity

_MOST_LINES = 48  # of the scores of single images, but three images at least
_TIMESTEPS_A_TABLE = 5

Row = tuple[str, ...]


def image_verdict(outputs: OutputComparison) -> list[str]:
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


def output_lines(outputs: OutputComparison) -> list[str]:
    """Each variant over all images, mean and worst: decoded images, denoiser, and files where there are several."""
    run = f"{plural(len(outputs.images), 'image')}, seed {outputs.seed}, {outputs.dtype} on {outputs.device}"
    network = f" LPIPS by {outputs.lpips}." if outputs.lpips else ""
    equal = any(entry.equal_images for entry in outputs.summary)
    left_out = " The mean PSNR leaves out images that are equal to the reference's." if equal else ""
    return [
        *paragraph(f"Outputs against {outputs.reference}, on equal latents: {run}", indent=0),
        *paragraph(f"Mean and worst of the images, PSNR in dB.{network}{left_out}"),
        *_decoded(outputs),
        "",
        *_denoiser(outputs),
        *(["", *_files(outputs)] if len(outputs.loras) > 1 else []),
    ]


def image_lines(outputs: OutputComparison) -> list[str]:
    """Each image, the worst first: its scores for each variant and number of steps, and its denoiser errors."""
    rows = len(outputs.steps) * len(outputs.images[0].scores)
    shown = worst_first(outputs)[: max(3, _MOST_LINES // rows)]
    all_shown = len(shown) == len(outputs.images)
    head = "Each image" if all_shown else f"{len(shown)} of {len(outputs.images)} images (report.json has all)"
    lines = [f"{head}, lowest PSNR first", *_decoded_of(shown, outputs)]
    for begin in range(0, len(outputs.timesteps), _TIMESTEPS_A_TABLE):
        lines += ["", *_denoiser_of(shown, outputs.timesteps, slice(begin, begin + _TIMESTEPS_A_TABLE))]
    return lines


def output_facts(outputs: OutputComparison) -> list[tuple[str, str]]:
    """Each variant at each number of steps as a label and its scores, for the short form."""
    return [
        (f"{entry.variant}, {plural(entry.steps, 'step')}", f"{psnr}; SSIM {similarity(entry.mean_ssim)} mean")
        for entry in outputs.summary
        for psnr in (_psnr(entry, outputs.reference),)
    ]


def _psnr(entry: VariantSummary, reference: str) -> str:
    if entry.worst_psnr == math.inf:
        return f"PSNR infinite: equal to {reference}"
    return f"PSNR {decibel(entry.mean_psnr)} dB mean, {decibel(entry.worst_psnr)} worst"


def _decoded(outputs: OutputComparison) -> list[str]:
    measures: list[tuple[str, Callable[[VariantSummary], str]]] = [
        ("PSNR", lambda entry: decibel(entry.mean_psnr)),
        ("worst", lambda entry: decibel(entry.worst_psnr)),
        ("SSIM", lambda entry: similarity(entry.mean_ssim)),
        ("worst", lambda entry: similarity(entry.worst_ssim)),
    ]
    if outputs.lpips is not None:
        measures.append(("LPIPS", lambda entry: distance(entry.mean_lpips)))
        measures.append(("worst", lambda entry: distance(entry.worst_lpips)))
    rows: list[Row] = []
    for steps, entry in zip(_once(entry.steps for entry in outputs.summary), outputs.summary, strict=True):
        worst = "" if entry.worst_psnr == math.inf else entry.worst_image
        rows.append((steps, entry.variant, *(spelt(entry) for _, spelt in measures), worst))
    heads = [numbers(head) for head, _ in measures]
    return table([numbers("steps"), words("variant"), *heads, words("worst image")], rows)


def _denoiser(outputs: OutputComparison) -> list[str]:
    rows: list[Row] = []
    for timestep, entry in zip(_once(f"{e.timestep:g}" for e in outputs.denoiser), outputs.denoiser, strict=True):
        worst = entry.worst_image if entry.worst_error else ""
        rows.append((timestep, entry.variant, percent(entry.mean_error), percent(entry.worst_error), worst))
    errors = [numbers("denoiser error"), numbers("worst")]
    return table([numbers("timestep"), words("variant"), *errors, words("worst image")], rows)


def _files(outputs: OutputComparison) -> list[str]:
    """The files by their bytes, with the PSNR of their images at the fewest steps."""
    steps = outputs.steps[0]
    summary = {entry.variant: entry for entry in outputs.summary if entry.steps == steps}
    rows: list[Row] = []
    for lora in sorted(outputs.loras, key=lambda lora: lora.nbytes):
        entry = summary[lora.variant]
        psnrs = decibel(entry.mean_psnr), decibel(entry.worst_psnr)
        rows.append((lora.variant, megabytes(lora.nbytes), *psnrs, lora.method, lora.file))
    values = [numbers("bytes"), numbers(f"PSNR, {plural(steps, 'step')}"), numbers("worst")]
    return table([words("variant"), *values, words("ranks"), words("file")], rows)


def _decoded_of(images: Sequence[ImageComparison], outputs: OutputComparison) -> list[str]:
    measures: list[tuple[str, Callable[[ImageScore], str]]] = [
        ("PSNR", lambda score: decibel(score.psnr)),
        ("SSIM", lambda score: similarity(score.ssim)),
    ]
    if outputs.lpips is not None:
        measures.append(("LPIPS", lambda score: distance(score.lpips)))
    if has_masks(outputs):
        measures.append(("mask PSNR", lambda score: decibel(score.mask_psnr)))
        measures.append(("mask SSIM", lambda score: similarity(score.mask_ssim)))
    rows: list[Row] = []
    for image in images:
        names = image.image, f"{image.width}x{image.height}"
        for variant in image.scores:
            name = variant.variant
            for score in variant.images:
                rows.append((*names, name, str(score.steps), *(spelt(score) for _, spelt in measures)))
                names, name = ("", ""), ""
    columns = [words("image"), numbers("size"), words("variant"), numbers("steps")]
    return table([*columns, *(numbers(head) for head, _ in measures)], rows)


def _denoiser_of(images: Sequence[ImageComparison], timesteps: Sequence[float], part: slice) -> list[str]:
    errors = [numbers(f"{timestep:g}") for timestep in timesteps[part]]
    rows: list[Row] = []
    for image in images:
        names = _once([image.image] * len(image.scores))
        for name, variant in zip(names, image.scores, strict=True):
            rows.append((name, variant.variant, *(percent(score.error) for score in variant.denoiser[part])))
    return table([words("image"), words("denoiser error at"), *errors], rows)


def _once(values: Iterable[Hashable]) -> list[str]:
    """Each value where it differs from the one above it, else nothing."""
    spelt = [str(value) for value in values]
    return [value if index == 0 or value != spelt[index - 1] else "" for index, value in enumerate(spelt)]
