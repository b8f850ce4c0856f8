"""Measure how far outputs are from the tuned model's: one number for one output, and one for many."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-9
"""Relative errors below this count as zero: fp32 has a precision of 1e-7."""


_FEW_SPREAD = 3.0  # dB: standard deviation between inputs, as if one more had been seen at that distance
_MIDDLE = 1.28  # standard deviations on both sides of the mean that hold 80 % of normal values


@dataclass(frozen=True, kw_only=True)
class OutputErrors:
    """Relative errors of the denoiser's output, ||output - tuned|| / ||tuned||."""

    typical: float
    worst: float


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return ||found - wanted|| / ||wanted|| in fp64; 0 for equal tensors, infinite if only `wanted` is 0."""
    distance = float(torch.linalg.vector_norm(found.double() - wanted.double()))
    size = float(torch.linalg.vector_norm(wanted.double()))
    if distance == 0:
        return 0.0
    return distance / size if size else math.inf


def squared_errors(
    found: Float[Tensor, "batch channels rows columns"], wanted: Float[Tensor, "batch channels rows columns"]
) -> Float[Tensor, " batch"]:
    """Return the squared relative error of each sample in fp32, with gradients."""
    size = wanted.square().flatten(1).sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    return (found.float() - wanted).square().flatten(1).sum(1) / size


def typical_error(errors: Sequence[float], probabilities: Iterable[float]) -> float:
    """Return the geometric mean of relative errors, weighted by the probabilities of their timesteps.

    The few worst images would dominate an ordinary mean of squares, which varies twice as much between sets of images.
    """
    weights = list(probabilities)
    logs = [weight * math.log(max(error, FLOOR)) for error, weight in zip(errors, weights, strict=True)]
    return math.exp(math.fsum(logs) / math.fsum(weights))


def spread_of(errors: Sequence[float], typical: float) -> tuple[float, float]:
    """Return the errors between which 80 % of inputs lie, if their logarithms are normal around `typical`."""
    if typical <= FLOOR:
        return typical, typical
    squares = [math.log(max(error, FLOOR) / typical) ** 2 for error in errors]
    prior = (_FEW_SPREAD / 20 * math.log(10)) ** 2
    spread = math.exp(_MIDDLE * math.sqrt((prior + math.fsum(squares)) / len(errors)))
    return typical / spread, typical * spread
