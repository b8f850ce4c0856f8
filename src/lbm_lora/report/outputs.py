"""What a comparison of pictures found: the part of a report about the outputs of base, base + LoRA and tuned.

Plain values that `dataclasses.asdict` turns into JSON. JSON has no infinity, so a number that is not finite
is the string "inf", "-inf" or "nan"; `float` reads all of them back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Number = float | str
"""A finite float, or the name of one that is not."""


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """How near one variant's output for one picture is to the reference's."""

    variant: str
    """Its name: base, base+LoRA, ..."""
    denoiser_error: Number
    """||output - reference|| / ||reference|| of the denoiser's first output, on equal latents."""
    psnr: Number
    """dB, of the decoded float pictures in [-1, 1] before rounding; "inf" where they are equal."""
    ssim: Number
    """1 for equal pictures."""
    mask_psnr: Number | None = None
    """`psnr` inside the picture's mask, where it has one."""
    mask_ssim: Number | None = None
    """`ssim` inside the picture's mask, where it has one."""


@dataclass(frozen=True, kw_only=True)
class ImageComparison:
    """One picture: each variant against the reference."""

    image: str
    """File name, without its folder."""
    width: int
    """Pixels that were compared, before the result is stretched back to the source's size."""
    height: int
    scores: tuple[VariantScores, ...]


@dataclass(frozen=True, kw_only=True)
class VariantSummary:
    """One variant over all pictures."""

    variant: str
    mean_denoiser_error: Number
    worst_denoiser_error: Number
    mean_psnr: Number
    """Mean over the pictures that differ from the reference's; "inf" where none does."""
    worst_psnr: Number
    mean_ssim: Number
    worst_ssim: Number
    equal_images: int
    """Pictures equal to the reference's in every value."""
    worst_image: str
    """The picture with the lowest PSNR."""


@dataclass(frozen=True, kw_only=True)
class OutputComparison:
    """The outputs of several variants on equal latents with equal noise."""

    reference: str
    """The variant that the others are measured against, normally `tuned`."""
    steps: int
    """Denoiser calls."""
    seed: int
    dtype: str
    """Of the denoiser and its latents: fp32, bf16 or fp16."""
    device: str
    images: tuple[ImageComparison, ...]
    summary: tuple[VariantSummary, ...]
    """One entry for each variant but the reference."""


def number(value: float) -> Number:
    """A value as JSON can hold it."""
    return value if math.isfinite(value) else str(value)


def summarize(images: Sequence[ImageComparison]) -> tuple[VariantSummary, ...]:
    """Mean and worst of each variant, in the order of the first picture's scores.

    Args:
        images: at least one, all with the same variants.
    """
    names = [score.variant for score in images[0].scores]
    return tuple(_summary(name, images) for name in names)


def _summary(variant: str, images: Sequence[ImageComparison]) -> VariantSummary:
    scores = [next(s for s in image.scores if s.variant == variant) for image in images]
    errors = [float(score.denoiser_error) for score in scores]
    psnrs = [float(score.psnr) for score in scores]
    ssims = [float(score.ssim) for score in scores]
    different = [value for value in psnrs if value != math.inf]
    return VariantSummary(
        variant=variant,
        mean_denoiser_error=number(_mean(errors)),
        worst_denoiser_error=number(max(errors)),
        mean_psnr=number(_mean(different) if different else math.inf),
        worst_psnr=number(min(psnrs)),
        mean_ssim=number(_mean(ssims)),
        worst_ssim=number(min(ssims)),
        equal_images=len(psnrs) - len(different),
        worst_image=images[psnrs.index(min(psnrs))].image,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
