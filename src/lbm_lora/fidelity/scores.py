"""Score the answers of several models against the tuned model's, as values of a report.

The denoiser is compared at single points of the bridge, so that each timestep gets its own value, and in images, which
combine the errors of all steps.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lbm_lora.errors import ConfigError
from lbm_lora.fidelity.answers import Answer
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.fidelity.outputs import (
    DenoiserScore,
    ImageComparison,
    ImageScore,
    OutputComparison,
    VariantScores,
    summarize,
    summarize_denoiser,
)
from lbm_lora.imaging.metrics import Weights, psnr, ssim
from lbm_lora.imaging.perceptual import Lpips


def scores(
    variant: str, found: Answer, wanted: Answer, *, mask: Weights | None = None, lpips: Lpips | None = None
) -> VariantScores:
    """Measure a variant's answer against the reference's answer to the same question.

    Args:
        mask: weights (height, width) of the masked scores.
    """
    return VariantScores(
        variant=variant,
        denoiser=tuple(
            DenoiserScore(timestep=timestep, error=relative_error(found.predictions[timestep], prediction))
            for timestep, prediction in wanted.predictions.items()
        ),
        images=tuple(
            _image_score(steps, found.images[steps], image, mask, lpips) for steps, image in wanted.images.items()
        ),
    )


def compared(
    found: Mapping[str, Sequence[VariantScores]],
    references: Sequence[Answer],
    *,
    names: Sequence[str],
    reference: str,
    seed: int,
    dtype: str,
    device: str,
    lpips: str | None = None,
) -> OutputComparison:
    """Combine all scores in one value."""
    if not names or not found:
        raise ConfigError(f"nothing to compare: {len(names)} images and {len(found)} variants.")
    images: list[ImageComparison] = []
    for index, (name, answered) in enumerate(zip(names, references, strict=True)):
        height, width = next(iter(answered.images.values())).shape[-2:]
        of_image = tuple(scored[index] for scored in found.values())
        images.append(ImageComparison(image=name, width=width, height=height, scores=of_image))
    return OutputComparison(
        reference=reference,
        steps=tuple(references[0].images),
        timesteps=tuple(references[0].predictions),
        seed=seed,
        dtype=dtype,
        device=device,
        lpips=lpips,
        images=tuple(images),
        summary=summarize(images),
        denoiser=summarize_denoiser(images),
    )


@torch.no_grad()
def _image_score(steps: int, image: Tensor, target: Tensor, mask: Weights | None, lpips: Lpips | None) -> ImageScore:
    return ImageScore(
        steps=steps,
        psnr=psnr(image, target),
        ssim=ssim(image, target),
        lpips=None if lpips is None else float(lpips(image[None], target[None])),
        mask_psnr=None if mask is None else psnr(image, target, mask),
        mask_ssim=None if mask is None else ssim(image, target, mask),
    )
