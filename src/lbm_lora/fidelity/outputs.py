"""Outputs of base and base + LoRA against the tuned model's: scores for each image, and their means."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass

from lbm_lora.errors import plural
from lbm_lora.fidelity.weights import STRICT, Float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DenoiserScore:
    """Error of the denoiser's output at one timestep against the reference's, for the same point of the bridge.

    Attributes:
        timestep: in (0, 1000]; 1000 is the source.
        error: ||output - reference|| / ||reference||.
    """

    timestep: Float
    error: Float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageScore:
    """Similarity of the decoded image at one number of steps to the reference's.

    Attributes:
        steps: denoiser calls.
        psnr: dB, of float images in [-1, 1] before rounding; infinite where they are equal.
        ssim: 1 for equal images.
        lpips: 0 for equal images; where LPIPS was measured.
        mask_psnr, mask_ssim: the same inside the image's mask, where it has one.
    """

    steps: int
    psnr: Float
    ssim: Float
    lpips: Float | None = None
    mask_psnr: Float | None = None
    mask_ssim: Float | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VariantScores:
    """One variant's outputs for one source image.

    Attributes:
        variant: its name: base, base + LoRA, ...
        denoiser: one entry for each timestep of the comparison, in its order.
        images: one entry for each number of steps of the comparison, in its order; `pictures` in JSON.
    """

    variant: str
    denoiser: tuple[DenoiserScore, ...]
    images: tuple[ImageScore, ...] = Field(validation_alias="pictures", serialization_alias="pictures")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageComparison:
    """One source image: each variant against the reference.

    Attributes:
        image: file name, without its folder.
        width, height: pixels that were compared, before the result is stretched back to the source's size.
    """

    image: str
    width: int
    height: int
    scores: tuple[VariantScores, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VariantSummary:
    """The decoded images of one variant at one number of steps, over all sources.

    Attributes:
        mean_psnr: mean over the images that differ from the reference's; infinite where none does.
        equal_images: images equal to the reference's in every value.
        worst_image: the one with the lowest PSNR.
    """

    variant: str
    steps: int
    mean_psnr: Float
    worst_psnr: Float
    mean_ssim: Float
    worst_ssim: Float
    mean_lpips: Float | None
    worst_lpips: Float | None
    equal_images: int
    worst_image: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DenoiserSummary:
    """The denoiser's outputs of one variant at one timestep, over all sources."""

    variant: str
    timestep: Float
    mean_error: Float
    worst_error: Float
    worst_image: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraFile:
    """The file behind a variant, for the curve of size against PSNR.

    Attributes:
        file: name without its folder.
        method: how its factors were made, as the file says: plain, calibrated, ...
        dtype: of the stored factors; empty where the file does not say.
        split: how ranks are split between layers; empty where the file does not say.
        ranks: the ranks asked for, where they are fixed: `rank 16, conv 8`.
    """

    variant: str
    file: str
    nbytes: int
    method: str
    dtype: str = ""
    split: str = ""
    ranks: str = ""

    @property
    def series(self) -> str:
        """What files have in common that belong on one curve: `calibrated, fp16, ranks chosen across layers`."""
        return ", ".join(part for part in (self.method, self.dtype, self.split) if part)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputComparison:
    """The outputs of several variants on equal latents with equal noise.

    Attributes:
        reference: the variant that the others are measured against, normally `tuned`.
        steps: numbers of denoiser calls that images were made with, ascending.
        timesteps: where the denoiser itself was compared, from the source on.
        dtype: of the denoiser and its latents: fp32, bf16 or fp16.
        lpips: the network of LPIPS, where it was measured: vgg, alex or squeeze.
        summary: one entry for each number of steps, and in it for each variant but the reference.
        denoiser: one entry for each timestep, and in it for each variant but the reference.
    """

    reference: str
    steps: tuple[int, ...]
    timesteps: tuple[Float, ...]
    seed: int
    dtype: str
    device: str
    lpips: str | None
    images: tuple[ImageComparison, ...]
    summary: tuple[VariantSummary, ...]
    denoiser: tuple[DenoiserSummary, ...]
    loras: tuple[LoraFile, ...] = ()

    def __repr__(self) -> str:
        """`<OutputComparison: 4 images, 1 and 4 steps>`."""
        steps = " and ".join(map(str, self.steps))
        return f"<OutputComparison: {plural(len(self.images), 'image')}, {steps} steps>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One source and what the models make of it.

    Attributes:
        image: file name of the source, without its folder.
        width, height: of every image of the set, pixels.
        views: what is seen -> bytes of a PNG, JPEG or WebP file. From the source to the reference, which is the last.
        psnrs: view -> PSNR to the reference's image, dB; of those that were measured.
        difference: the LoRA's image minus the reference's, amplified, as such a file.
        difference_title: what it shows, with its scale.
    """

    image: str
    width: int
    height: int
    views: Mapping[str, bytes]
    psnrs: Mapping[str, float]
    difference: bytes
    difference_title: str


def summarize(images: Sequence[ImageComparison]) -> tuple[VariantSummary, ...]:
    """Mean and worst of the images (at least one) for each variant at each number of steps."""
    first = images[0].scores
    return tuple(
        _decoded(images, variant, index) for index in range(len(first[0].images)) for variant in range(len(first))
    )


def summarize_denoiser(images: Sequence[ImageComparison]) -> tuple[DenoiserSummary, ...]:
    """Mean and worst error over the images (at least one) of each variant's denoiser at each timestep."""
    first = images[0].scores
    return tuple(
        _denoiser(images, variant, index) for index in range(len(first[0].denoiser)) for variant in range(len(first))
    )


def worst_first(outputs: OutputComparison) -> tuple[ImageComparison, ...]:
    """The images by their lowest PSNR at any number of steps, of the LoRA: the variant after the base."""

    def lowest(image: ImageComparison) -> float:
        return min(score.psnr for score in image.scores[min(1, len(image.scores) - 1)].images)

    return tuple(sorted(outputs.images, key=lowest))


def has_masks(outputs: OutputComparison) -> bool:
    """Whether any image was also measured inside a mask."""
    scores = (score for image in outputs.images for variant in image.scores for score in variant.images)
    return any(score.mask_psnr is not None for score in scores)


def _decoded(images: Sequence[ImageComparison], variant: int, index: int) -> VariantSummary:
    scores = [image.scores[variant].images[index] for image in images]
    psnrs = [score.psnr for score in scores]
    ssims = [score.ssim for score in scores]
    distances = [score.lpips for score in scores if score.lpips is not None]
    different = [value for value in psnrs if value != math.inf]
    return VariantSummary(
        variant=images[0].scores[variant].variant,
        steps=scores[0].steps,
        mean_psnr=_mean(different) if different else math.inf,
        worst_psnr=min(psnrs),
        mean_ssim=_mean(ssims),
        worst_ssim=min(ssims),
        mean_lpips=_mean(distances) if distances else None,
        worst_lpips=max(distances) if distances else None,
        equal_images=len(psnrs) - len(different),
        worst_image=images[psnrs.index(min(psnrs))].image,
    )


def _denoiser(images: Sequence[ImageComparison], variant: int, index: int) -> DenoiserSummary:
    scores = [image.scores[variant].denoiser[index] for image in images]
    errors = [score.error for score in scores]
    return DenoiserSummary(
        variant=images[0].scores[variant].variant,
        timestep=scores[0].timestep,
        mean_error=_mean(errors),
        worst_error=max(errors),
        worst_image=images[errors.index(max(errors))].image,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
