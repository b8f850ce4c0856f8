"""Spectrum of one delta: what each rank is worth, and what storing it costs in precision."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lbm_lora.blocks import energy
from lbm_lora.factorize import Moment, WeightedSVD, Weights, Whitening, grid_noise
from lbm_lora.naming import ModuleName, ParamName

WeightsOf = Callable[[ModuleName], Weights]
"""Cost of an error in a module's matrix."""


def unweighted(_: ModuleName) -> Weights:
    """Return weights with which all errors in a matrix cost the same."""
    return Weights()


@dataclass(frozen=True, kw_only=True)
class DeltaSpectrum:
    """Spectrum of one delta, as found by a decomposition.

    Attributes:
        name, shape: of the parameter.
        squares: (k,), fp64: how much each rank reduces the squared error, in the weighted norm.
        rest: the squared error left at rank k.
        rounding: (k,), fp64: the squared error that rounding each rank to the stored dtype is expected to add.
        dense: the squared error from rounding the dense delta; infinite if it is not a choice.
        worth: ranks above the noise; k if unknown.
        is_kept: whether rank k is the delta as it was given: nothing is decomposed or rounded.
    """

    name: ParamName
    shape: tuple[int, ...]
    squares: Tensor
    rest: float
    rounding: Tensor
    dense: float
    worth: int
    is_kept: bool = False


def dense_error(matrix: Tensor, whitening: Whitening, dtype: torch.dtype) -> float:
    """Return the squared error of rounding a matrix to the stored dtype; infinite if it leaves its range."""
    lost = matrix.to(dtype).float().sub_(matrix)
    return energy(whitening(lost)) if torch.isfinite(lost).all() else math.inf


def rounding_error(svd: WeightedSVD, weights: Weights, dtype: torch.dtype) -> Tensor:
    """Return the squared error that rounding both factors adds, rank by rank.

    The rounding errors of a factor's elements are independent, so only the diagonals of the moments count. The part
    that refitting `up` recovers is ignored.
    """
    outputs, inputs = (
        _variances(weights.outputs, svd.left.shape[0]),
        _variances(weights.inputs, svd.right.shape[1]),
    )
    if dtype == torch.int8:
        across = outputs.sum() * grid_noise(svd.left, dim=0)
        along = inputs.sum() * grid_noise(svd.right, dim=1)
    else:
        share = _ROUNDING.get(dtype, 0.0)
        across = share * (outputs @ svd.left.double().square())
        along = share * (svd.right.double().square() @ inputs)
    return svd.values.double().square() * (weights.scale * across + along)


def _variances(moment: Moment | None, count: int) -> Tensor:
    """Return the diagonal of a moment, for each row or column of the matrix."""
    if moment is None:
        return torch.ones(count, dtype=torch.float64)
    return moment.variances().repeat_interleave(moment.repeat)


_ROUNDING = {torch.bfloat16: 2.0**-14 * 0.541 / 12, torch.float16: 2.0**-20 * 0.541 / 12}
"""Mean squared relative error of rounding log-uniform values: ulp^2 / 12 over the value squared."""
