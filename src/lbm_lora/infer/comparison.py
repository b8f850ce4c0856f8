"""How near the outputs of several models are: on equal latents, with equal noise, as float pictures.

One model is in memory at a time: `variant_outputs` of each of them in turn, then `compare_outputs` of all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbm_lora.checkpoint import dtype_name
from lbm_lora.errors import ConfigError
from lbm_lora.imaging.metrics import Weights, psnr, ssim
from lbm_lora.infer.pipeline import Latents, follow_bridge
from lbm_lora.model.build import LBMModel
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report.outputs import ImageComparison, OutputComparison, VariantScores, number, summarize


@dataclass(frozen=True, kw_only=True)
class VariantOutputs:
    """What one model made of the latents of the sources, on the CPU.

    Attributes:
        predictions: the denoiser's first output for each latent, fp32 [channels, rows, columns]. Its input is
            the source latent itself, so it is the same for all variants.
        images: the decoded results, fp32 [3, height, width] in [-1, 1].
    """

    predictions: tuple[Tensor, ...]
    images: tuple[Tensor, ...]


def variant_outputs(
    model: LBMModel,
    latents: Sequence[Tensor],
    *,
    steps: int = 1,
    seed: int = 0,
    tiled: bool | None = None,
    progress: Progress = SILENT,
) -> VariantOutputs:
    """Run one model on source latents (1, channels, rows, columns) of any sizes; `progress` counts them."""
    predictions: list[Tensor] = []
    images: list[Tensor] = []
    for latent in latents:
        first, target = _first_and_last(model, latent.to(model.device, model.dtype), steps=steps, seed=seed)
        predictions.append(first)
        images.append(model.decode(target, tiled=tiled).clamp(-1, 1)[0].float().cpu())
        progress.advance()
    return VariantOutputs(predictions=tuple(predictions), images=tuple(images))


def compare_outputs(
    outputs: Mapping[str, VariantOutputs],
    *,
    names: Sequence[str],
    reference: str = "tuned",
    masks: Sequence[Weights | None] | None = None,
    steps: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> OutputComparison:
    """Measure every variant's outputs against the reference's.

    Args:
        outputs: variant -> what it made of the same latents, with the same steps and seed.
        names: of the pictures, in the order of the outputs.
        reference: the variant that the others are measured against.
        masks: for each picture the weights (height, width) that the masked scores are taken under, or None.
        steps: as given to `variant_outputs`; it and the rest are recorded.
        seed: likewise.
        dtype: of the models.
        device: that they ran on.

    Raises:
        ConfigError: no pictures, or no variant called `reference`.
    """
    if reference not in outputs or not names:
        raise ConfigError(f"nothing to compare: {len(names)} pictures of {', '.join(outputs)}, reference {reference}.")
    others = [variant for variant in outputs if variant != reference]
    images = []
    for index, name in enumerate(names):
        mask = masks[index] if masks else None
        scores = tuple(_scores(v, outputs[v], outputs[reference], index, mask) for v in others)
        height, width = outputs[reference].images[index].shape[-2:]
        images.append(ImageComparison(image=name, width=width, height=height, scores=scores))
    return OutputComparison(
        reference=reference,
        steps=steps,
        seed=seed,
        dtype=dtype_name(dtype),
        device=str(device),
        images=tuple(images),
        summary=summarize(images),
    )


def _first_and_last(model: LBMModel, latent: Latents, *, steps: int, seed: int) -> tuple[Tensor, Latents]:
    """The denoiser's first output and the target latent, without a second call of the denoiser."""
    calls: list[Tensor] = []

    def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
        prediction = model.denoise(noisy, timestep)
        calls.append(prediction)
        return prediction

    target = follow_bridge(model, latent, steps=steps, seed=seed, denoise=denoise)
    return calls[0][0].float().cpu(), target


def _scores(
    variant: str, outputs: VariantOutputs, reference: VariantOutputs, index: int, mask: Weights | None
) -> VariantScores:
    image, target = outputs.images[index], reference.images[index]
    return VariantScores(
        variant=variant,
        denoiser_error=number(relative_error(outputs.predictions[index], reference.predictions[index])),
        psnr=number(psnr(image, target)),
        ssim=number(ssim(image, target)),
        mask_psnr=None if mask is None else number(psnr(image, target, mask)),
        mask_ssim=None if mask is None else number(ssim(image, target, mask)),
    )


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted|| in fp64; 0 for equal tensors, infinite where only `wanted` is 0."""
    distance = float(torch.linalg.vector_norm(found.double() - wanted.double()))
    size = float(torch.linalg.vector_norm(wanted.double()))
    if distance == 0:
        return 0.0
    return distance / size if size else math.inf
