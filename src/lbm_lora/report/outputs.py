"""What a comparison of outputs found: the part of a report about what base, base + LoRA and tuned make of pictures.

Plain values that `dataclasses.asdict` turns into JSON. JSON has no infinity, so a number that is not finite
is the string "inf", "-inf" or "nan"; `float` reads all of them back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Number = float | str
"""A finite float, or the name of one that is not."""


@dataclass(frozen=True, kw_only=True)
class DenoiserScore:
    """How near the denoiser's output at one timestep is to the reference's, for the same point of the bridge."""

    timestep: float
    """In (0, 1000]; 1000 is the source."""
    error: Number
    """||output - reference|| / ||reference||."""


@dataclass(frozen=True, kw_only=True)
class PictureScore:
    """How near the decoded picture of one number of steps is to the reference's."""

    steps: int
    """Denoiser calls."""
    psnr: Number
    """dB, of float pictures in [-1, 1] before rounding; "inf" where they are equal."""
    ssim: Number
    """1 for equal pictures."""
    lpips: Number | None = None
    """0 for equal pictures; where LPIPS was measured."""
    mask_psnr: Number | None = None
    """`psnr` inside the picture's mask, where it has one."""
    mask_ssim: Number | None = None
    """`ssim` inside the picture's mask, where it has one."""


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """One variant's outputs for one picture."""

    variant: str
    """Its name: base, base + LoRA, ..."""
    denoiser: tuple[DenoiserScore, ...]
    """One entry for each timestep of the comparison, in its order."""
    pictures: tuple[PictureScore, ...]
    """One entry for each number of steps of the comparison, in its order."""


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
    """The decoded pictures of one variant at one number of steps, over all images."""

    variant: str
    steps: int
    mean_psnr: Number
    """Mean over the pictures that differ from the reference's; "inf" where none does."""
    worst_psnr: Number
    mean_ssim: Number
    worst_ssim: Number
    mean_lpips: Number | None
    worst_lpips: Number | None
    equal_images: int
    """Pictures equal to the reference's in every value."""
    worst_image: str
    """The picture with the lowest PSNR."""


@dataclass(frozen=True, kw_only=True)
class DenoiserSummary:
    """The denoiser's outputs of one variant at one timestep, over all images."""

    variant: str
    timestep: float
    mean_error: Number
    worst_error: Number
    worst_image: str


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """The file behind a variant, for the curve of size against error."""

    variant: str
    file: str
    """Without its folder."""
    nbytes: int
    method: str
    """How its ranks were chosen, as the file says; files of one method make one curve."""


@dataclass(frozen=True, kw_only=True)
class OutputComparison:
    """The outputs of several variants on equal latents with equal noise."""

    reference: str
    """The variant that the others are measured against, normally `tuned`."""
    steps: tuple[int, ...]
    """Numbers of denoiser calls that pictures were made with, ascending."""
    timesteps: tuple[float, ...]
    """Where the denoiser itself was compared, from the source on."""
    seed: int
    dtype: str
    """Of the denoiser and its latents: fp32, bf16 or fp16."""
    device: str
    lpips: str | None
    """The network of LPIPS, where it was measured: vgg, alex or squeeze."""
    images: tuple[ImageComparison, ...]
    summary: tuple[VariantSummary, ...]
    """One entry for each number of steps, and in it for each variant but the reference."""
    denoiser: tuple[DenoiserSummary, ...]
    """One entry for each timestep, and in it for each variant but the reference."""
    loras: tuple[LoraFile, ...] = ()


def number(value: float) -> Number:
    """A value as JSON can hold it."""
    return value if math.isfinite(value) else str(value)


def summarize(images: Sequence[ImageComparison]) -> tuple[VariantSummary, ...]:
    """Mean and worst picture of each variant at each number of steps.

    Args:
        images: at least one, all with the same variants and numbers of steps.
    """
    first = images[0].scores
    return tuple(
        _pictures(images, variant, index) for index in range(len(first[0].pictures)) for variant in range(len(first))
    )


def summarize_denoiser(images: Sequence[ImageComparison]) -> tuple[DenoiserSummary, ...]:
    """Mean and worst error of each variant's denoiser at each timestep.

    Args:
        images: at least one, all with the same variants and timesteps.
    """
    first = images[0].scores
    return tuple(
        _denoiser(images, variant, index) for index in range(len(first[0].denoiser)) for variant in range(len(first))
    )


def worst_first(outputs: OutputComparison) -> tuple[ImageComparison, ...]:
    """The images by their lowest PSNR at any number of steps, of the LoRA: the variant after the base."""
    return tuple(sorted(outputs.images, key=_lowest_psnr))


def has_masks(outputs: OutputComparison) -> bool:
    """Whether any image was also measured inside a mask."""
    scores = (score for image in outputs.images for variant in image.scores for score in variant.pictures)
    return any(score.mask_psnr is not None for score in scores)


def _pictures(images: Sequence[ImageComparison], variant: int, index: int) -> VariantSummary:
    scores = [image.scores[variant].pictures[index] for image in images]
    psnrs = [float(score.psnr) for score in scores]
    ssims = [float(score.ssim) for score in scores]
    distances = [float(score.lpips) for score in scores if score.lpips is not None]
    different = [value for value in psnrs if value != math.inf]
    return VariantSummary(
        variant=images[0].scores[variant].variant,
        steps=scores[0].steps,
        mean_psnr=number(_mean(different) if different else math.inf),
        worst_psnr=number(min(psnrs)),
        mean_ssim=number(_mean(ssims)),
        worst_ssim=number(min(ssims)),
        mean_lpips=number(_mean(distances)) if distances else None,
        worst_lpips=number(max(distances)) if distances else None,
        equal_images=len(psnrs) - len(different),
        worst_image=images[psnrs.index(min(psnrs))].image,
    )


def _denoiser(images: Sequence[ImageComparison], variant: int, index: int) -> DenoiserSummary:
    scores = [image.scores[variant].denoiser[index] for image in images]
    errors = [float(score.error) for score in scores]
    return DenoiserSummary(
        variant=images[0].scores[variant].variant,
        timestep=scores[0].timestep,
        mean_error=number(_mean(errors)),
        worst_error=number(max(errors)),
        worst_image=images[errors.index(max(errors))].image,
    )


def _lowest_psnr(image: ImageComparison) -> float:
    variant = image.scores[min(1, len(image.scores) - 1)]
    return min(float(score.psnr) for score in variant.pictures)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
