"""Spectrum of one delta: what each rank is worth, and what storing it costs in precision."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from lbm_lora.adapter.packed_index import dense_bytes, rank_bytes
from lbm_lora.blocks import energy
from lbm_lora.factorize import (
    WIDTHS,
    Moment,
    Root,
    TriangularRoot,
    WeightedSVD,
    Weights,
    Whitening,
    WidthCosts,
    grid_noise,
    relative_noise,
)
from lbm_lora.naming import ModuleName, ParamName

WeightsOf = Callable[[ModuleName], Weights]
"""Cost of an error in a module's matrix."""


def unweighted(_: ModuleName) -> Weights:
    """All errors in a matrix cost the same."""
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


@dataclass(frozen=True, kw_only=True)
class WidthSpectrum:
    """Spectrum of one delta for a packed file: what each rank is worth at each number of bits.

    Attributes:
        name, shape: of the parameter.
        costs: its ranks, or for a dense delta its only one.
        is_dense: whether it is stored dense in any case.
    """

    name: ParamName
    shape: tuple[int, ...]
    costs: WidthCosts
    is_dense: bool = False


def width_spectrum(
    name: ParamName, shape: tuple[int, ...], matrix: Tensor, svd: WeightedSVD, weights: Weights, whitening: Whitening
) -> WidthSpectrum:
    """Return the spectrum of a delta in the form of a matrix.

    Rounding one factor of a rank to a relative error e in its norm leaves e^2 / (1 + e^2) of the rank's energy, since
    the other factor is fitted to it.
    """
    squares = np.maximum(svd.squares, 0)
    across = _noise(svd.left.mT.contiguous(), weights.outputs, whitening.outputs, weights.scale)
    along = _noise(svd.right, weights.inputs, whitening.inputs, 1.0)
    errors = squares * np.minimum(across / (1 + across) + along / (1 + along), 1)
    rows, columns = matrix.shape
    sides = weights.scale * _variances(weights.outputs, rows).sum() * _variances(weights.inputs, columns).sum()
    flat = relative_noise(matrix.flatten()[None])[:, 0]
    dense = flat * energy(matrix) / matrix.numel() * float(sides)
    return WidthSpectrum(
        name=name,
        shape=shape,
        costs=WidthCosts(
            errors=np.vstack((squares, errors)),
            nbytes=np.array([0, *(rank_bytes(shape, width) for width in WIDTHS)]),
            rest=svd.rest,
            fixed_bytes=_ENTRY,
            dense_errors=np.append(np.inf, dense),
            dense_bytes=np.array([0, *(dense_bytes(shape, width) for width in WIDTHS)]),
        ),
    )


def vector_spectrum(name: ParamName, values: Tensor, moment: Moment | None, *, is_needed: bool) -> WidthSpectrum:
    """Return the spectrum of a delta that is stored dense.

    Args:
        moment: cost of an error in it; None: all errors cost the same.
        is_needed: store it in any case, as precisely as possible: what it is worth is not known.
    """
    row = values.flatten()[None].float()
    variances = torch.ones(row.shape[1]) if moment is None else moment.variances().float()
    lost = float(row[0].double().square().sum()) if moment is None else moment.quadratic(row)
    errors = relative_noise(row, variances)[:, 0] * float(row[0].double().square() @ variances.double())
    nbytes = np.array([0, *(_ENTRY + dense_bytes(tuple(values.shape), width) for width in WIDTHS)])
    if is_needed:
        errors = np.where(np.array(WIDTHS) == max(WIDTHS), 0.0, np.inf)
    return WidthSpectrum(
        name=name,
        shape=tuple(values.shape),
        costs=WidthCosts(errors=np.append(lost, errors)[:, None], nbytes=nbytes, is_needed=is_needed),
        is_dense=True,
    )


def _noise(
    vectors: Tensor, moment: Moment | None, root: Root | None, scale: float
) -> Float64[np.ndarray, "widths rank"]:
    """Return the squared error of rounding each vector to each width, in the norm in which it has length 1.

    A triangular root passes errors on: then the squares of its diagonal count instead of the variances.
    """
    variances = _variances(moment, vectors.shape[1])
    lengths = scale * (vectors.double().square() @ variances).numpy()
    share = 1.0
    if isinstance(root, TriangularRoot):
        kept = root.lower.diagonal().double().square().sum() * root.repeat
        share = float(kept / variances.sum().clamp_min(1e-300))
    return relative_noise(vectors, variances.float()) * lengths * min(share, 1.0)


def dense_error(matrix: Tensor, weights: Weights, dtype: torch.dtype) -> float:
    """Return the squared error that rounding a matrix to the stored dtype is expected to cost; infinite if it leaves
    its range. The rounding errors of its elements are independent, so only the diagonals of the moments count."""
    lost = matrix.to(dtype).float().sub_(matrix)
    if not torch.isfinite(lost).all():
        return math.inf
    outputs, inputs = _variances(weights.outputs, lost.shape[0]), _variances(weights.inputs, lost.shape[1])
    return weights.scale * float(outputs @ (lost.square_() @ inputs.float()).double())


def rounding_error(svd: WeightedSVD, weights: Weights, dtype: torch.dtype) -> Tensor:
    """Return the squared error that rounding both factors adds, rank by rank.

    The rounding errors of a factor's elements are independent, so only the diagonals of the moments count. The part
    that refitting `up` recovers is ignored.
    """
    outputs = _variances(weights.outputs, svd.left.shape[0])
    inputs = _variances(weights.inputs, svd.right.shape[1])
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


_ENTRY = 10  # bytes that a name takes in the compressed index

_ROUNDING = {torch.bfloat16: 2.0**-14 * 0.541 / 12, torch.float16: 2.0**-20 * 0.541 / 12}
"""Mean squared relative error of rounding log-uniform values: ulp^2 / 12 over the value squared."""
