"""Points of the bridge as samples of a joint refit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.packed import regridded
from lbm_lora.factorize import PACKED
from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.model.build import LBMModel
from lbm_lora.progress import Progress
from lbm_lora.refinement.adjustable import Sample
from lbm_lora.refinement.joint import JointResult, JointSettings, refit

POINTS = 12
"""Points of a step by default: more cost time and memory, fewer are overfitted sooner."""


def refit_points(
    model: LBMModel,
    adapter: Adapter,
    learnt: Sequence[AnsweredPoint],
    held: Sequence[AnsweredPoint],
    settings: JointSettings,
    *,
    dtype: torch.dtype,
    points: int = POINTS,
    progress: Progress,
) -> JointResult:
    """Refit an adapter of an LBM at answered points; see `refit`.

    Args:
        model: the base.
        dtype: dtype of the adapter's file.
        points: points of a step, which pass through the network together.
    """
    chosen = spread_points(learnt, points * settings.steps)
    return refit(
        model.denoiser,
        adapter,
        list(_samples(model, chosen, points)),
        list(_samples(model, held, points)),
        replace(settings, samples=1),
        stored=lambda made: regridded(made, adapter) if dtype == PACKED else made.cast(dtype),
        progress=progress,
    )


def spread_points(points: Sequence[AnsweredPoint], most: int) -> list[AnsweredPoint]:
    """Return some of the points of many images: as many images as possible, and all timesteps in turn.

    Args:
        points: those of one image after the other, each with the same timesteps.
    """
    timesteps = len({one.point.timestep for one in points})
    images = [points[first : first + timesteps] for first in range(0, len(points), timesteps)]
    found: list[AnsweredPoint] = []
    for shift in range(timesteps):
        wanted = min(most - len(found), len(images))
        even = [index * len(images) // wanted for index in range(wanted)]
        found += [images[index][(place + shift) % timesteps] for place, index in enumerate(even)]
    return found


def _samples(model: LBMModel, points: Sequence[AnsweredPoint], batch_size: int) -> Iterator[Sample]:
    """Yield the points in batches of one shape."""
    for _, alike in groupby(sorted(points, key=_shape), key=_shape):
        group = list(alike)
        for first in range(0, len(group), batch_size):
            yield _sample(model, group[first : first + batch_size])


def _sample(model: LBMModel, points: Sequence[AnsweredPoint]) -> Sample:
    states = torch.cat([one.point.state for one in points]).to(model.device)
    timesteps = torch.tensor([one.point.timestep for one in points], dtype=torch.float32)
    return Sample(
        run=lambda: model.denoise(states, timesteps),
        wanted=torch.cat([one.wanted for one in points]).to(model.device),
        weights=torch.tensor([one.point.probability for one in points]),
    )


def _shape(one: AnsweredPoint) -> tuple[int, ...]:
    return tuple(one.point.state.shape)
