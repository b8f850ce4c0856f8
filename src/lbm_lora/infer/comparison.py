"""How near the outputs of several models are: on equal latents, with equal noise, as float tensors.

The denoiser is compared at single points of the bridge, so that each timestep has its own number, and in pictures,
where the errors of all steps come together. One model is in memory at a time: the reference is asked first
(`questions`, then `answers`), then every variant (`answers`, then `scores`), and `compared` puts all together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbm_lora.errors import ConfigError, ImageError
from lbm_lora.imaging.metrics import Weights, psnr, ssim
from lbm_lora.imaging.perceptual import Lpips
from lbm_lora.infer.pipeline import Latents, follow_bridge
from lbm_lora.model import bridge
from lbm_lora.model.build import LBMModel
from lbm_lora.model.config import LBMConfig
from lbm_lora.report.outputs import (
    DenoiserScore,
    ImageComparison,
    OutputComparison,
    PictureScore,
    VariantScores,
    number,
    summarize,
    summarize_denoiser,
)

EVERYWHERE = (1000.0, 750.0, 500.0, 250.0)
"""Where a denoiser is compared that was trained on all timesteps: those that 1, 2 and 4 steps call."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What every model is given for one picture, on the CPU.

    Attributes:
        source: source latent [1, channels, rows, columns].
        states: timestep -> the point of the bridge there, in the shape of the source.
    """

    source: Tensor
    states: Mapping[float, Tensor]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model made of a question, on the CPU.

    Attributes:
        predictions: timestep -> the denoiser's output for the state there, fp32 [channels, rows, columns].
        images: number of steps -> the decoded result, fp32 [3, height, width] in [-1, 1].
    """

    predictions: Mapping[float, Tensor]
    images: Mapping[int, Tensor]


def trained_timesteps(config: LBMConfig) -> tuple[float, ...]:
    """The timesteps that a model was trained on, from the source on; `EVERYWHERE` where it was on all of them."""
    if config.timestep_sampling != "custom_timesteps" or not config.selected_timesteps or not config.prob:
        return EVERYWHERE
    drawn = {t for t, share in zip(config.selected_timesteps, config.prob, strict=True) if share > 0}
    return tuple(sorted(drawn, reverse=True))


@torch.no_grad()
def question(model: LBMModel, source: Latents, timesteps: Sequence[float], *, seed: int = 0) -> Question:
    """The states of one picture: points of the bridge from its source to what the reference makes of it in one step.

    The true target is not known where only sources are given. The noise of a state depends on the seed and on the
    timesteps before it, not on the picture.

    Args:
        model: the reference.
        source: a batch of one.
    """
    source = source.to(model.device, model.dtype)
    target = bridge.predict_target(source, 1.0, model.denoise(source, _full(bridge.TRAIN_TIMESTEPS)))
    generator = torch.Generator().manual_seed(seed)
    states = {
        timestep: bridge.interpolate(
            source,
            target,
            timestep / bridge.TRAIN_TIMESTEPS,
            bridge.standard_normal(source, [generator]),
            model.config.bridge_noise_sigma,
        ).cpu()
        for timestep in timesteps
    }
    return Question(source=source.cpu(), states=states)


@torch.no_grad()
def answer(
    model: LBMModel, asked: Question, steps: Sequence[int], *, seed: int = 0, tiled: bool | None = None
) -> Answer:
    """Run one model on a question.

    Args:
        steps: numbers of denoiser calls to make pictures with.
        tiled: decode in tiles; by default where the picture is larger than the model's tile.

    Raises:
        ImageError: a result is not finite.
    """
    source = asked.source.to(model.device, model.dtype)
    first = model.denoise(source, _full(bridge.TRAIN_TIMESTEPS))
    predictions: dict[float, Tensor] = {}
    for timestep, state in asked.states.items():
        at_source = timestep == bridge.TRAIN_TIMESTEPS
        prediction = first if at_source else model.denoise(state.to(model.device, model.dtype), _full(timestep))
        predictions[timestep] = prediction[0].float().cpu()
    images: dict[int, Tensor] = {}
    for count in steps:
        target = follow_bridge(model, source, steps=count, seed=seed, denoise=_reusing(first, model.denoise))
        decoded = model.decode(target, tiled=tiled)[0].float().cpu()
        if not torch.isfinite(decoded).all():
            raise ImageError(
                f"the picture of {count} steps is not finite. fp16 overflows in SDXL's VAE: use --torch_dtype bf16 "
                "or float."
            )
        images[count] = decoded.clamp(-1, 1)
    return Answer(predictions=predictions, images=images)


def scores(
    variant: str, found: Answer, wanted: Answer, *, mask: Weights | None = None, lpips: Lpips | None = None
) -> VariantScores:
    """Measure a variant's answer against the reference's answer to the same question.

    Args:
        mask: weights (height, width) that the masked scores are taken under.
        lpips: measures LPIPS as well.
    """
    return VariantScores(
        variant=variant,
        denoiser=tuple(
            DenoiserScore(timestep=timestep, error=number(relative_error(found.predictions[timestep], prediction)))
            for timestep, prediction in wanted.predictions.items()
        ),
        pictures=tuple(
            _picture(steps, found.images[steps], image, mask, lpips) for steps, image in wanted.images.items()
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
    """All scores in one value.

    Args:
        found: variant -> its scores for every picture, the base first.
        references: the reference's answers, in the same order.
        names: of the pictures, likewise.
        reference: name of the reference; this and the rest are recorded.

    Raises:
        ConfigError: no pictures, or no variants.
    """
    if not names or not found:
        raise ConfigError(f"nothing to compare: {len(names)} pictures and {len(found)} variants.")
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


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted|| in fp64; 0 for equal tensors, infinite where only `wanted` is 0."""
    distance = float(torch.linalg.vector_norm(found.double() - wanted.double()))
    size = float(torch.linalg.vector_norm(wanted.double()))
    if distance == 0:
        return 0.0
    return distance / size if size else math.inf


def _picture(steps: int, image: Tensor, target: Tensor, mask: Weights | None, lpips: Lpips | None) -> PictureScore:
    return PictureScore(
        steps=steps,
        psnr=number(psnr(image, target)),
        ssim=number(ssim(image, target)),
        lpips=None if lpips is None else number(_distance(lpips, image, target)),
        mask_psnr=None if mask is None else number(psnr(image, target, mask)),
        mask_ssim=None if mask is None else number(ssim(image, target, mask)),
    )


@torch.no_grad()
def _distance(lpips: Lpips, image: Tensor, target: Tensor) -> float:
    return float(lpips(image[None], target[None]))


def _reusing(first: Tensor, denoise: bridge.Denoise) -> bridge.Denoise:
    """The denoiser, whose output for the source is known: the first call of every walk along the bridge."""
    known: list[Tensor] = [first]

    def call(noisy: Tensor, timestep: Tensor) -> Tensor:
        return known.pop() if known else denoise(noisy, timestep)

    return call


def _full(timestep: float) -> Tensor:
    return torch.tensor([timestep], dtype=torch.float32)
