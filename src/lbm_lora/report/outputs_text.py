"""The outputs part of a report as lines of at most 100 columns: each variant over all images, then each image."""

from collections.abc import Collection, Sequence

from lbm_lora.report.outputs import (
    ImageComparison,
    OutputComparison,
    PictureScore,
    VariantSummary,
    has_masks,
    worst_first,
)
from lbm_lora.report.wording import (
    LABEL,
    WIDTH,
    decibel,
    distance,
    labelled,
    megabytes,
    percent,
    plural,
    printable,
    shortened,
    similarity,
    wrapped,
)

_MOST_LINES = 48  # of the pictures of single images, but three images at least
_TIMESTEPS_A_TABLE = 5
_VARIANT = 20  # columns of a variant's name, at most
_GAP = "  "


def outputs_lines(outputs: OutputComparison) -> list[str]:
    """Each variant over all images, mean and worst: pictures, denoiser, and sizes where there are several."""
    reference = printable(outputs.reference)
    run = f"{plural(len(outputs.images), 'image')}, seed {outputs.seed}"
    lines = wrapped(
        f"Outputs against {reference}, on equal latents: {run}, {outputs.dtype} on {outputs.device}", WIDTH, indent=""
    )
    network = f" LPIPS by {outputs.lpips}." if outputs.lpips else ""
    equal = any(entry.equal_images for entry in outputs.summary)
    left_out = " The mean PSNR leaves out pictures that are equal to the reference's." if equal else ""
    lines += [*wrapped(f"Mean and worst of the images, PSNR in dB.{network}{left_out}", WIDTH), *_pictures(outputs)]
    lines += ["", *_denoiser(outputs)]
    if len(outputs.loras) > 1:
        lines += ["", *_sizes(outputs)]
    return lines


def image_lines(outputs: OutputComparison) -> list[str]:
    """Each image, the worst first: its pictures for each variant and number of steps, and its denoiser errors."""
    rows = len(outputs.steps) * len(outputs.images[0].scores)
    shown = worst_first(outputs)[: max(3, _MOST_LINES // rows)]
    all_shown = len(shown) == len(outputs.images)
    head = "Each image" if all_shown else f"{len(shown)} of {len(outputs.images)} images (report.json has all)"
    lines = [f"{head}, lowest PSNR first", *_pictures_of(shown, outputs)]
    for begin in range(0, len(outputs.timesteps), _TIMESTEPS_A_TABLE):
        lines += ["", *_denoiser_of(shown, outputs.timesteps, slice(begin, begin + _TIMESTEPS_A_TABLE))]
    return lines


def short_output_line(entry: VariantSummary, reference: str) -> str:
    """One variant at one number of steps in one line of the short form."""
    scores = f"PSNR {decibel(entry.mean_psnr)} dB mean, {decibel(entry.worst_psnr)} worst"
    scores = scores.replace("equal dB mean, equal worst", f"infinite: equal to {printable(reference)}")
    label = f"{shortened(printable(entry.variant), LABEL - 14)}, {plural(entry.steps, 'step')}"
    return labelled(label, f"{scores}; SSIM {similarity(entry.mean_ssim)} mean")


def _pictures(outputs: OutputComparison) -> list[str]:
    measured = outputs.lpips is not None
    lpips = ["LPIPS", "worst"] if measured else []
    rows = [["steps", "variant", "PSNR", "worst", "SSIM", "worst", *lpips, "worst image"]]
    for index, entry in enumerate(outputs.summary):
        first = index == 0 or entry.steps != outputs.summary[index - 1].steps
        equal = entry.worst_psnr == "inf"
        distances = [distance(entry.mean_lpips), distance(entry.worst_lpips)] if measured else []
        rows.append(
            [
                str(entry.steps) if first else "",
                _name(entry.variant),
                *(decibel(entry.mean_psnr), decibel(entry.worst_psnr)),
                *(similarity(entry.mean_ssim), similarity(entry.worst_ssim)),
                *distances,
                "" if equal else printable(entry.worst_image),
            ]
        )
    return _table(rows, left={1, len(rows[0]) - 1}, flexible=len(rows[0]) - 1)


def _denoiser(outputs: OutputComparison) -> list[str]:
    rows = [["timestep", "variant", "denoiser error", "worst", "worst image"]]
    for index, entry in enumerate(outputs.denoiser):
        first = index == 0 or entry.timestep != outputs.denoiser[index - 1].timestep
        errors = float(entry.mean_error), float(entry.worst_error)
        rows.append(
            [
                f"{entry.timestep:g}" if first else "",
                _name(entry.variant),
                *map(percent, errors),
                printable(entry.worst_image) if errors[1] else "",
            ]
        )
    return _table(rows, left={1, 4}, flexible=4)


def _sizes(outputs: OutputComparison) -> list[str]:
    """The files by size, with the PSNR of their pictures at the fewest steps."""
    steps = outputs.steps[0]
    summary = {entry.variant: entry for entry in outputs.summary if entry.steps == steps}
    rows = [["variant", "size", f"PSNR, {plural(steps, 'step')}", "worst", "ranks", "file"]]
    for lora in sorted(outputs.loras, key=lambda lora: lora.nbytes):
        entry = summary[lora.variant]
        scores = decibel(entry.mean_psnr), decibel(entry.worst_psnr)
        method = shortened(printable(lora.method), _VARIANT)
        rows.append([_name(lora.variant), megabytes(lora.nbytes), *scores, method, printable(lora.file)])
    return _table(rows, left={0, 4, 5}, flexible=5)


def _pictures_of(images: Sequence[ImageComparison], outputs: OutputComparison) -> list[str]:
    measured, masked = outputs.lpips is not None, has_masks(outputs)
    heads = [*(["LPIPS"] if measured else []), *(["mask PSNR", "mask SSIM"] if masked else [])]
    rows = [["image", "size", "variant", "steps", "PSNR", "SSIM", *heads]]
    for image in images:
        names = [printable(image.image), f"{image.width}x{image.height}"]
        for variant in image.scores:
            for score in variant.pictures:
                first = score.steps == outputs.steps[0]
                values = _values(score, measured=measured, masked=masked)
                rows.append([*names, _name(variant.variant) if first else "", str(score.steps), *values])
                names = ["", ""]
    return _table(rows, left={0, 2}, flexible=0)


def _values(score: PictureScore, *, measured: bool, masked: bool) -> list[str]:
    values = [decibel(score.psnr), similarity(score.ssim)]
    values += [distance(score.lpips)] if measured else []
    return values + ([decibel(score.mask_psnr), similarity(score.mask_ssim)] if masked else [])


def _denoiser_of(images: Sequence[ImageComparison], timesteps: Sequence[float], part: slice) -> list[str]:
    rows = [["image", "denoiser error at", *(f"{timestep:g}" for timestep in timesteps[part])]]
    for image in images:
        for index, variant in enumerate(image.scores):
            errors = [percent(float(score.error)) for score in variant.denoiser[part]]
            rows.append([printable(image.image) if index == 0 else "", _name(variant.variant), *errors])
    return _table(rows, left={0, 1}, flexible=0)


def _name(variant: str) -> str:
    return shortened(printable(variant), _VARIANT)


def _table(rows: Sequence[Sequence[str]], *, left: Collection[int], flexible: int) -> list[str]:
    """Lines of columns as wide as their cells, numbers to the right.

    Args:
        rows: the heads first.
        left: columns whose cells stand to the left.
        flexible: the column that is shortened where the lines would be too long.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    fixed = sum(widths) - widths[flexible] + len(_GAP) * len(widths)
    widths[flexible] = min(widths[flexible], WIDTH - fixed)
    lines: list[str] = []
    for row in rows:
        cells = [shortened(cell, width) for cell, width in zip(row, widths, strict=True)]
        aligned = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append((_GAP + _GAP.join(aligned)).rstrip())
    return lines
