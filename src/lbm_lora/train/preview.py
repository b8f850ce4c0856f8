"""Validation at fixed seeds: the loss at each timestep, how near the pictures are, and a grid to look at.

The same samples with the same noise every time, so that numbers of different steps, runs and machines compare.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lbm_lora.imaging.grids import comparison_grid
from lbm_lora.imaging.metrics import psnr, ssim
from lbm_lora.imaging.tensors import to_images
from lbm_lora.model import bridge
from lbm_lora.train.data import Batch, PairDataset, collate
from lbm_lora.train.draws import sample_generators
from lbm_lora.train.losses import Lpips
from lbm_lora.train.step import BridgeStep

ROWS = 8
"""Pairs that the grid shows."""
_GRID_TIMESTEPS = (250.0, 500.0, 750.0, 1000.0)  # where all timesteps are trained

Picture = Float[Tensor, "3 height width"]


@dataclass(frozen=True, kw_only=True)
class PictureScores:
    """How near predictions are to their targets, means over the pairs.

    Attributes:
        psnr: dB, within the mask where the data have one.
        ssim: likewise.
        lpips: of whole pictures; None without its weights.
    """

    psnr: float
    ssim: float
    lpips: float | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Attributes:
    samples: pairs that were looked at.
    losses: timestep -> loss.
    loss: their mean, weighted by the probabilities that training draws them with.
    pictures: steps -> scores of the pictures after that many denoiser calls.
    """

    samples: int
    losses: dict[float, float]
    loss: float
    pictures: dict[int, PictureScores]

    def metrics(self) -> dict[str, float]:
        """The numbers by the names that loggers show."""
        found = {"validation/loss": self.loss}
        found |= {f"validation/loss_at_{timestep:g}": loss for timestep, loss in self.losses.items()}
        for steps, scores in self.pictures.items():
            values = {"psnr": scores.psnr, "ssim": scores.ssim, "lpips": scores.lpips}
            found |= {f"validation/{name}_{steps}": value for name, value in values.items() if value is not None}
        return found

    def quality(self, metric: str) -> float:
        """A metric in which larger is better; pictures count after the first number of steps."""
        if metric == "loss":
            return -self.loss
        value = getattr(next(iter(self.pictures.values())), metric)
        return -value if metric == "lpips" else value

    def __str__(self) -> str:
        first, scores = next(iter(self.pictures.items()))
        lpips = "" if scores.lpips is None else f", LPIPS {scores.lpips:.4f}"
        return f"loss {self.loss:.5f}, after {first} step: PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.4f}{lpips}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one pair gives; `tiles` are its row in the grid."""

    index: int
    losses: dict[float, float]
    pictures: dict[int, PictureScores]
    tiles: tuple[Image.Image, ...]


def look(
    step: BridgeStep, dataset: PairDataset, indices: Iterable[int], num_steps: Sequence[int], lpips: Lpips | None
) -> Iterator[Seen]:
    """Measure pairs, one at a time.

    Args:
        step: with the model as it is to be measured, in evaluation mode.
        num_steps: denoiser calls of each prediction.
    """
    timesteps = step.objective.selected_timesteps or _GRID_TIMESTEPS
    for index in indices:
        yield _look_at(step, collate([dataset[index]]), index, timesteps, num_steps, lpips)


def chosen_indices(dataset: PairDataset, count: int) -> list[int]:
    """At most `count` pairs, evenly spread over the data set."""
    count = min(count, len(dataset))
    return [place * len(dataset) // count for place in range(count)]


def summary(step: BridgeStep, seen: Sequence[Seen]) -> Scores:
    """The means over pairs."""
    prob = step.objective.prob or (1 / len(_GRID_TIMESTEPS),) * len(_GRID_TIMESTEPS)
    losses = {timestep: fmean(one.losses[timestep] for one in seen) for timestep in seen[0].losses}
    return Scores(
        samples=len(seen),
        losses=losses,
        loss=sum(loss * share for loss, share in zip(losses.values(), prob, strict=True)),
        pictures={steps: _mean([one.pictures[steps] for one in seen]) for steps in seen[0].pictures},
    )


def grid(seen: Sequence[Seen]) -> Image.Image:
    """source | prediction after each number of steps | target, a row for each of the first pairs."""
    labels = ["source", *(f"{steps} step{'s' * (steps > 1)}" for steps in seen[0].pictures), "target"]
    return comparison_grid(labels, [one.tiles for one in seen[:ROWS]])


@torch.no_grad()
def _look_at(
    step: BridgeStep,
    batch: Batch,
    index: int,
    timesteps: Sequence[float],
    num_steps: Sequence[int],
    lpips: Lpips | None,
) -> Seen:
    if batch.source is None or batch.target is None:
        raise AssertionError("validation pairs are pictures")
    encoded = replace(batch, latents=step.latents(batch))  # encoded once for all timesteps and pictures
    losses = {
        timestep: float(step.losses_at(encoded, torch.tensor([timestep]), stream=f"validation {timestep:g}"))
        for timestep in timesteps
    }
    latent, _ = step.latents(encoded)
    target, mask = batch.target[0], None if batch.mask is None else batch.mask[0, 0]
    if mask is not None and not mask.any():
        mask = None  # nothing is marked: the whole picture counts
    scores: dict[int, PictureScores] = {}
    made: list[Picture] = []
    for steps in num_steps:
        generators = sample_generators(step.seed, batch.epoch, batch.indices, f"preview {steps}")
        end = bridge.sample(step.model.denoise, latent, steps, step.objective.bridge_noise_sigma, generators)
        picture = _decoded(step, end)
        scores[steps] = PictureScores(
            psnr=psnr(picture, target, mask),
            ssim=ssim(picture, target, mask),
            lpips=None if lpips is None else float(lpips(picture[None], target[None])),
        )
        made.append(picture)
    tiles = tuple(to_images(torch.stack([batch.source[0].cpu(), *made, target.cpu()])))
    return Seen(index=index, losses=losses, pictures=scores, tiles=tiles)


def _decoded(step: BridgeStep, latent: Tensor) -> Picture:
    with torch.autocast(step.model.device.type, enabled=False):
        return step.model.decode(latent)[0].clamp(-1, 1).cpu()


def _mean(scores: Sequence[PictureScores]) -> PictureScores:
    lpips = [one.lpips for one in scores if one.lpips is not None]
    return PictureScores(
        psnr=fmean(one.psnr for one in scores),
        ssim=fmean(one.ssim for one in scores),
        lpips=fmean(lpips) if lpips else None,
    )
