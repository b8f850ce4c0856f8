"""Measure how far outputs are from the tuned model's: one number for one output, and one for many."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-9
"""Relative errors below this count as zero: fp32 has a precision of 1e-7."""


@dataclass(frozen=True, kw_only=True)
class OutputErrors:
    """Relative errors of the denoiser's output, ||output - tuned|| / ||tuned||.

    Attributes:
        typical: see `typical_error`.
        worst: the largest error at one point.
    """

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
