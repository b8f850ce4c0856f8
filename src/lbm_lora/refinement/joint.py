"""Refit an adapter's biases, norms and ranks together, so that they absorb what the layers' errors add up to.

An extraction fits each layer as if the others were exact. This fits the values that cost no bytes (see `adjustable.py`)
to the tuned model's own outputs, by the method of Gauss and Newton: the outputs are linearised, a damped least squares
problem is solved by conjugate gradients with exact products, and the step is compared with its prediction, which sets
the damping (Levenberg, 1944; Marquardt, 1963). The squared relative error of each input counts relative to the one that
it has before the step: as in the typical error, the worst inputs do not outweigh all others.

There are more values than a few inputs can determine, so the method overfits sooner or later. Other samples in each
step give more for the same time than all of them in fewer steps. The adapter as stored in a file is measured on
held-out inputs after each step. A step that does not help them is undone, and the next one is damped more. The method
stops once two steps in sequence do not help; the given adapter is kept if none does.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, common_dtype
from lbm_lora.adapter.packed import regridded
from lbm_lora.factorize import PACKED
from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.fidelity.output_errors import FLOOR, OutputErrors, typical_error
from lbm_lora.model.build import LBMModel
from lbm_lora.progress import SILENT, Progress
from lbm_lora.refinement.adjustable import Adjustable, Linearized, Rows, Sample, Vector
from lbm_lora.refinement.images import shape_of

POINTS = 12
"""Points of a step by default: more cost time and memory, fewer are overfitted sooner."""

_GOOD, _BAD = 0.75, 0.25  # actual over predicted decrease above and below which the damping changes
_LESS, _MORE = 1 / 3, 4.0
_PATIENCE = 2  # steps in sequence that do not help before the end
_DONE = 1e-14  # squared gradient, relative to the first, below which nothing is left to solve in fp32
_SMOOTH = 0.5  # share of a tensor's mean in the estimated squared gradient of each of its values


@dataclass(frozen=True, kw_only=True)
class JointSettings:
    """Settings of a joint refit.

    Attributes:
        steps: most steps of Gauss and Newton.
        samples: samples of a step, in turn; None: all.
        damping: least damping, relative to the mean squared gradient of each value.
    """

    steps: int = 6
    samples: int | None = None
    iterations: int = 8
    damping: float = 3e-2
    probes: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class JointResult:
    """The best adapter, as stored in a file.

    Attributes:
        before, after: errors of the given adapter and of the best one on held-out inputs, both as stored.
        step: step of the best one; 0 is the given adapter.
    """

    adapter: Adapter
    before: OutputErrors
    after: OutputErrors
    step: int
    steps: int
    seconds: float

    @property
    def gain(self) -> float:
        """Reduction of the typical error, in dB."""
        return 20 * math.log10(max(self.before.typical, FLOOR) / max(self.after.typical, FLOOR))


def refit(
    network: nn.Module,
    adapter: Adapter,
    learnt: Sequence[Sample],
    held: Sequence[Sample],
    settings: JointSettings | None = None,
    *,
    stored: Callable[[Adapter], Adapter] | None = None,
    progress: Progress = SILENT,
) -> JointResult:
    """Refit an adapter to the wanted outputs of a network. The result has the same tensors, shapes and ranks.

    Args:
        network: the base, in evaluation mode; it is never changed.
        learnt: samples to fit. The graphs of those of one step are in memory at once.
        held: samples that choose the best step; from other inputs.
        stored: rounds an adapter to what its file holds; by default to the dtype of the given one.
    """
    settings, started = settings or JointSettings(), time.monotonic()
    dtype = common_dtype([adapter])
    stored = stored or (lambda made: made.cast(dtype))
    adjustable = Adjustable(network, adapter)
    values, given = adjustable.given, stored(adapter)
    progress.start(settings.steps, "refitting")
    before = _stored_errors(adjustable, given, held)
    best, after, kept, taken, damping = given, before, 0, 0, settings.damping
    for step in range(1, settings.steps + 1 if len(values) else 1):
        taken = step
        count = settings.samples or len(learnt)
        samples = [learnt[index % len(learnt)] for index in range((step - 1) * count, step * count)]
        weights = _balanced(_errors(adjustable, values, samples), samples)
        linearized = Linearized(adjustable, values, samples, weights)
        scales = _scales(adjustable, linearized.mean_squares(settings.probes, settings.seed + step))
        change, left = solve(
            linearized.times,
            linearized.transposed,
            linearized.residual,
            scales,
            damping=damping,
            iterations=settings.iterations,
        )
        del linearized  # its graphs take most of the memory
        tried = values + change
        loss = _loss(_errors(adjustable, tried, samples), weights)
        ratio = (1 - loss) / max(1 - left, FLOOR)
        damping = max(settings.damping, damping * (_LESS if ratio > _GOOD else 1 if ratio > _BAD else _MORE))
        made = stored(adjustable.adapter(tried)) if loss < 1 else None  # not if it is not finite either
        found = after if made is None else _stored_errors(adjustable, made, held)
        if made is not None and found.typical < after.typical:
            values, best, after, kept = tried, made, found, step
        else:  # the same values again on other samples, with more damping
            damping *= _MORE
        progress.advance()
        if step - kept >= _PATIENCE:
            break
    return JointResult(
        adapter=best, before=before, after=after, step=kept, steps=taken, seconds=time.monotonic() - started
    )


@torch.no_grad()
def _errors(adjustable: Adjustable, values: Vector, samples: Sequence[Sample]) -> list[Tensor]:
    """Return the relative error of each input, before rounding."""
    parts = adjustable.split(values)
    return [_relative(adjustable.output(parts, sample), sample) for sample in samples]


@torch.no_grad()
def _stored_errors(adjustable: Adjustable, adapter: Adapter, samples: Sequence[Sample]) -> OutputErrors:
    found = torch.cat([_relative(adjustable.output_of(adapter, sample), sample) for sample in samples]).tolist()
    weights = torch.cat([sample.weights for sample in samples]).tolist()
    return OutputErrors(typical=typical_error(found, weights), worst=max(found))


def _relative(output: Tensor, sample: Sample) -> Tensor:
    wanted = sample.wanted.flatten(1).double()
    lengths = wanted.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return (output.flatten(1).double() - wanted).norm(dim=1) / lengths


def _balanced(errors: Sequence[Tensor], samples: Sequence[Sample]) -> list[Tensor]:
    """Return the weight of each squared relative error, for which the loss is now 1."""
    total = math.fsum(float(sample.weights.sum()) for sample in samples)
    return [
        sample.weights.to(error) / total / error.clamp_min(FLOOR).square()
        for error, sample in zip(errors, samples, strict=True)
    ]


def _loss(errors: Sequence[Tensor], weights: Sequence[Tensor]) -> float:
    return math.fsum(float((share * error.square()).sum()) for error, share in zip(errors, weights, strict=True))


def _scales(adjustable: Adjustable, squares: Vector) -> Vector:
    """Return the size of a typical change of each value: the inverse of its root mean squared gradient.

    The estimate of a single value is rough, so that of its tensor is mixed in.
    """
    parts = [part.flatten() for part in adjustable.split(squares)]
    smooth = [torch.lerp(part, part.mean().expand_as(part), _SMOOTH) for part in parts if part.numel()]
    found = torch.cat(smooth)
    return torch.where(found > 0, found.clamp_min(torch.finfo(torch.float32).tiny).rsqrt(), torch.zeros_like(found))


def solve(
    times: Callable[[Vector], Rows],
    transposed: Callable[[Rows], Vector],
    residual: Rows,
    scales: Vector,
    *,
    damping: float,
    iterations: int,
) -> tuple[Vector, float]:
    """Minimise ||residual - J change||^2 + damping * ||change / scales||^2 in a few iterations of conjugate gradients.

    CGLS (Hestenes and Stiefel, 1952; Björck, "Numerical Methods for Least Squares Problems", 1996, section 7.4) needs
    only products with J. Few iterations damp too: directions in which J is small come last.

    Args:
        scales: positive; size of a typical change of each value, which preconditions the problem.

    Returns:
        The change, and the squared residual that is left after it if J is exact.
    """
    moved = torch.zeros_like(scales)
    gradient = scales * transposed(residual)
    direction, squared = gradient, _squared(gradient)
    first = squared
    for _ in range(iterations):
        if squared <= _DONE * first:
            break
        product = times(scales * direction)
        length = squared / (_squared(product) + damping * _squared(direction))
        moved = moved + length * direction
        residual = residual - length * product
        gradient = scales * transposed(residual) - damping * moved
        before, squared = squared, _squared(gradient)
        direction = gradient + (squared / before) * direction
    return scales * moved, _squared(residual)


def _squared(vector: Tensor) -> float:
    return float(vector.double().square().sum())


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
    for _, alike in groupby(sorted(points, key=shape_of), key=shape_of):
        group = list(alike)
        for first in range(0, len(group), batch_size):
            batch = group[first : first + batch_size]
            states = torch.cat([one.point.state for one in batch]).to(model.device)
            timesteps = torch.tensor([one.point.timestep for one in batch], dtype=torch.float32)
            yield Sample(
                run=partial(model.denoise, states, timesteps),
                wanted=torch.cat([one.wanted for one in batch]).to(model.device),
                weights=torch.tensor([one.point.probability for one in batch]),
            )
