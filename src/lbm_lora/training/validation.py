"""Validation with fixed seeds: the loss at each timestep, image metrics, and a grid of images.

It always uses the same pairs and noise, so that values of different steps, runs and machines are comparable. Several
processes divide the pairs among themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, distributed

from lbm_lora.files import MARK
from lbm_lora.imaging.grids import comparison_grid
from lbm_lora.imaging.metrics import psnr, ssim
from lbm_lora.imaging.tensors import to_images
from lbm_lora.model.bridge_pipeline import follow_bridge
from lbm_lora.training.data.dataset import Batch, PairDataset
from lbm_lora.training.loss import BridgeStep, Lpips, sample_generators

SAMPLES = f"{MARK}: samples"
"""Mark of an image that shows samples of a training run."""
ROWS = 8
"""Number of pairs in the grid."""
_GRID_TIMESTEPS = (250.0, 500.0, 750.0, 1000.0)  # if all timesteps are trained

ImageTensor = Float[Tensor, "3 height width"]


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """PSNR in dB and SSIM of predictions, within the mask if there is one; LPIPS of full images if it has weights."""

    psnr: float
    ssim: float
    lpips: float | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a validation: the loss at each timestep, their mean by the probabilities in training, and the scores of
    the images after each number of denoiser calls."""

    samples: int
    losses: dict[float, float]
    loss: float
    images: dict[int, ImageScores]

    def metrics(self) -> dict[str, float]:
        """Return the values by the names that loggers show."""
        found = {"validation/loss": self.loss}
        found |= {f"validation/loss_at_{timestep:g}": loss for timestep, loss in self.losses.items()}
        for steps, scores in self.images.items():
            values = {"psnr": scores.psnr, "ssim": scores.ssim, "lpips": scores.lpips}
            found |= {f"validation/{name}_{steps}": value for name, value in values.items() if value is not None}
        return found

    def quality(self, metric: str) -> float:
        """Return a metric such that larger is better; image metrics are those after the first number of steps."""
        if metric == "loss":
            return -self.loss
        value = getattr(next(iter(self.images.values())), metric)
        return -value if metric == "lpips" else value

    def __str__(self) -> str:
        first, scores = next(iter(self.images.items()))
        lpips = "" if scores.lpips is None else f", LPIPS {scores.lpips:.4f}"
        return f"loss {self.loss:.5f}, after {first} step: PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.4f}{lpips}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of one pair; `tiles` are its row in the grid."""

    losses: dict[float, float]
    images: dict[int, ImageScores]
    tiles: tuple[Image.Image, ...]


class Validator:
    """Validator that measures the same pairs every time: at most `count`, evenly spread.

    `num_steps` are the numbers of denoiser calls for the images.
    """

    def __init__(self, dataset: PairDataset, *, count: int, num_steps: Sequence[int], lpips: Lpips | None) -> None:
        self._dataset = dataset
        count = min(count, len(dataset))
        self._indices = [place * len(dataset) // count for place in range(count)]
        self._num_steps = tuple(num_steps)
        self._lpips = lpips

    def run(
        self, step: BridgeStep, *, rank: int = 0, world: int = 1, stop: Callable[[], bool] = lambda: False
    ) -> tuple[Scores, Image.Image] | None:
        """Return the scores and the image grid, the same in every process; None if stopped.

        Args:
            step: loss with the model to measure, in evaluation mode.
            stop: called after each pair; must return the same in all processes.
        """
        # every process calls the model equally often, as sharded models require
        filled = self._indices + self._indices[:1] * (-len(self._indices) % world)
        measured: dict[int, Measured] = {}
        for index in filled[rank::world]:
            measured[index] = measure(step, self._dataset[index], self._num_steps, self._lpips)
            if stop():
                return None
        if world > 1:
            parts: list[Any] = [None] * world
            distributed.all_gather_object(parts, measured)
            measured = {index: one for part in parts for index, one in part.items()}
        ordered = [measured[index] for index in self._indices]
        return summary(step, ordered), grid(ordered)


def summary(step: BridgeStep, measured: Sequence[Measured]) -> Scores:
    prob = step.objective.prob or (1 / len(_GRID_TIMESTEPS),) * len(_GRID_TIMESTEPS)
    losses = {timestep: fmean(one.losses[timestep] for one in measured) for timestep in measured[0].losses}
    return Scores(
        samples=len(measured),
        losses=losses,
        loss=sum(loss * share for loss, share in zip(losses.values(), prob, strict=True)),
        images={steps: _mean([one.images[steps] for one in measured]) for steps in measured[0].images},
    )


def grid(measured: Sequence[Measured]) -> Image.Image:
    """Draw a row of source, prediction after each number of steps, and target for each of the first pairs."""
    labels = ["source", *(f"{steps} step{'s' * (steps > 1)}" for steps in measured[0].images), "target"]
    return comparison_grid(labels, [one.tiles for one in measured[:ROWS]])


@torch.no_grad()
def measure(step: BridgeStep, batch: Batch, num_steps: Sequence[int], lpips: Lpips | None) -> Measured:
    """Measure a batch of one pair; the arguments are those of `Validator`."""
    assert batch.source is not None
    assert batch.target is not None
    encoded = replace(batch, latents=step.latents(batch))  # encoded once for all timesteps and images
    losses = {
        timestep: float(step.losses_at(encoded, torch.tensor([timestep]), stream=f"validation {timestep:g}"))
        for timestep in step.objective.selected_timesteps or _GRID_TIMESTEPS
    }
    latent, _ = step.latents(encoded)
    target, mask = batch.target[0], None if batch.mask is None else batch.mask[0, 0]
    if mask is not None and not mask.any():
        mask = None  # an empty mask: the full image counts
    scores: dict[int, ImageScores] = {}
    made: list[ImageTensor] = []
    for steps in num_steps:
        generators = sample_generators(step.seed, batch.epoch, batch.indices, f"preview {steps}")
        end = follow_bridge(step.model.denoise, latent, steps, step.objective.bridge_noise_sigma, generators)
        with torch.autocast(step.model.device.type, enabled=False):
            image = step.model.decode(end)[0].clamp(-1, 1).cpu()
        scores[steps] = ImageScores(
            psnr=psnr(image, target, mask),
            ssim=ssim(image, target, mask),
            lpips=None if lpips is None else float(lpips(image[None], target[None])),
        )
        made.append(image)
    tiles = tuple(to_images(torch.stack([batch.source[0].cpu(), *made, target.cpu()])))
    return Measured(losses=losses, images=scores, tiles=tiles)


def _mean(scores: Sequence[ImageScores]) -> ImageScores:
    lpips = [one.lpips for one in scores if one.lpips is not None]
    return ImageScores(
        psnr=fmean(one.psnr for one in scores),
        ssim=fmean(one.ssim for one in scores),
        lpips=fmean(lpips) if lpips else None,
    )
