"""Run a model: its denoiser at points of the bridge, and the images that it makes from a source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.fidelity.points import Latent, Point, bridge_points, shared_noise, timestep_tensor
from lbm_lora.model import bridge
from lbm_lora.model.bridge_pipeline import Denoise, follow_bridge
from lbm_lora.model.build import LBMModel
from lbm_lora.model.pipeline import check_finite
from lbm_lora.model.schedule import Schedule

Outputs = Float[Tensor, "batch channels rows columns"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """Inputs on which every model is run for one image."""

    source: Latent
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """Outputs of one model for a question, on the CPU.

    Attributes:
        predictions: timestep -> the denoiser's output at the point there, fp32 [channels, rows, columns].
        images: number of steps -> the decoded result, fp32 [3, height, width] in [-1, 1].
    """

    predictions: Mapping[float, Tensor]
    images: Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class AnsweredPoint:
    """A point of the bridge with the tuned model's output there, fp32, on the CPU."""

    point: Point
    wanted: Latent


@torch.no_grad()
def outputs_at(model: LBMModel, points: Sequence[Point]) -> Outputs:
    """Return the denoiser's outputs at points of one shape, from one forward pass, in the model's dtype on the CPU."""
    states = torch.cat([point.state for point in points])
    timesteps = torch.tensor([point.timestep for point in points], dtype=torch.float32)
    return model.denoise(states, timesteps).cpu()


def answered(model: LBMModel, points: Sequence[Point]) -> list[AnsweredPoint]:
    """Return points of one image with the tuned model's outputs, computed in one batch."""
    wanted = outputs_at(model, points).float()
    return [AnsweredPoint(point=point, wanted=output[None]) for point, output in zip(points, wanted, strict=True)]


def question(model: LBMModel, source: Latent, schedule: Schedule, *, seed: int = 0) -> Question:
    """Return the points of one image. The noise depends only on the seed: it is the same for every image."""
    return Question(source=source.cpu(), points=tuple(bridge_points(model, source, schedule, shared_noise(seed))))


@torch.no_grad()
def answer(
    model: LBMModel, asked: Question, steps: Sequence[int], *, seed: int = 0, tiled: bool | None = None
) -> Answer:
    """Run one model on a question."""
    source = asked.source.to(model.device, model.dtype)
    first = model.denoise(source, timestep_tensor(bridge.TRAIN_TIMESTEPS))
    predictions: dict[float, Tensor] = {}
    for point in asked.points:
        at_source = point.timestep == bridge.TRAIN_TIMESTEPS
        prediction = first.cpu() if at_source else outputs_at(model, [point])
        predictions[point.timestep] = prediction[0].float()
    images: dict[int, Tensor] = {}
    for count in steps:
        draw = torch.Generator().manual_seed(seed)
        noise = model.config.bridge_noise_sigma
        target = follow_bridge(_reusing(first, model.denoise), source, count, noise, [draw])
        decoded = model.decode(target, tiled=tiled)[0].float().cpu()
        check_finite(decoded, model.dtype, what=f"the image of {count} steps")
        images[count] = decoded.clamp(-1, 1)
    return Answer(predictions=predictions, images=images)


def _reusing(first: Tensor, denoise: Denoise) -> Denoise:
    """Return a denoiser that reuses the known output for the source, the first call of every walk along the bridge."""
    known: list[Tensor] = [first]

    def call(noisy: Tensor, timestep: Tensor) -> Tensor:
        return known.pop() if known else denoise(noisy, timestep)

    return call
