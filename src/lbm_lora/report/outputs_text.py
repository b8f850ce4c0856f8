"""The outputs part of a report as lines of at most 100 columns: each variant over all pictures, then each picture."""

from lbm_lora.report.outputs import ImageComparison, OutputComparison, VariantScores, VariantSummary
from lbm_lora.report.wording import (
    LABEL,
    WIDTH,
    decibel,
    labelled,
    percent,
    plural,
    printable,
    shortened,
    similarity,
    wrapped,
)


def outputs_lines(outputs: OutputComparison) -> list[str]:
    """Each variant over all pictures: mean and worst."""
    reference = printable(outputs.reference)
    run = f"{plural(len(outputs.images), 'image')}, {plural(outputs.steps, 'step')}, seed {outputs.seed}"
    lines = wrapped(
        f"Outputs against {reference}, on equal latents: {run}, {outputs.dtype} on {outputs.device}", WIDTH, indent=""
    )
    lines.append(f"  {'':<12} {'PSNR, dB':>16}  {'SSIM':>16}  {'denoiser error':>18}")
    pair = f"  {'mean':>7}  {'worst':>7}"
    lines.append(f"  {'variant':<10} {pair}{pair}  {'mean':>8}  {'worst':>8}  worst image")
    lines += [_variant(entry) for entry in outputs.summary]
    if any(entry.equal_images for entry in outputs.summary):
        lines += wrapped("The mean PSNR leaves out pictures that are equal to the reference's.", WIDTH)
    return lines


def _variant(entry: VariantSummary) -> str:
    worst = entry.worst_image if entry.equal_images == 0 or float(entry.worst_psnr) < float("inf") else ""
    line = (
        f"  {shortened(printable(entry.variant), 12):<12} {decibel(entry.mean_psnr):>7}  {decibel(entry.worst_psnr):>7}"
        f"  {similarity(entry.mean_ssim):>7}  {similarity(entry.worst_ssim):>7}"
        f"  {percent(float(entry.mean_denoiser_error)):>8}  {percent(float(entry.worst_denoiser_error)):>8}"
        f"  {shortened(printable(worst), 29)}"
    )
    return line.rstrip()


def image_lines(outputs: OutputComparison) -> list[str]:
    """Each picture, one line for each variant."""
    masked = any(score.mask_psnr is not None for image in outputs.images for score in image.scores)
    inside = f"  {'PSNR in mask':>12}  {'SSIM in mask':>12}" if masked else ""
    lines = [f"  {'image':<24} {'size':>9}  {'variant':<12} {'PSNR':>7}  {'SSIM':>7}{inside}"]
    for image in outputs.images:
        lines += [_score(image if index == 0 else None, score, masked) for index, score in enumerate(image.scores)]
    return lines


def _score(image: ImageComparison | None, score: VariantScores, masked: bool) -> str:
    """One line; the picture's name and size stand on its first line only."""
    name = "" if image is None else shortened(printable(image.image), 24)
    pixels = "" if image is None else f"{image.width}x{image.height}"
    inside = f"  {decibel(score.mask_psnr):>12}  {similarity(score.mask_ssim):>12}" if masked else ""
    variant = shortened(printable(score.variant), 12)
    return f"  {name:<24} {pixels:>9}  {variant:<12} {decibel(score.psnr):>7}  {similarity(score.ssim):>7}{inside}"


def short_output_line(entry: VariantSummary, reference: str) -> str:
    """One variant in one line of the short form."""
    scores = f"PSNR {decibel(entry.mean_psnr)} dB mean, {decibel(entry.worst_psnr)} worst"
    scores = scores.replace("equal dB mean, equal worst", "infinite: equal pictures")
    label = shortened(printable(f"{entry.variant} against {reference}"), LABEL - 4)
    return labelled(label, f"{scores}; SSIM {similarity(entry.mean_ssim)} mean")
