"""Factorize a matrix for the least change in a network's output, instead of in the matrix.

An error E in a layer's matrix changes the squared output by about scale * tr(G E C E^T), where C is the second
moment of the layer's inputs and G that of the gradient at its outputs (Martens and Grosse, "Optimizing Neural Networks
with Kronecker-factored Approximate Curvature", 2015, arXiv 1503.05671). With L_C L_C^T = C and L_G L_G^T = scale * G
this equals ||L_G^T E L_C||_F^2: the truncated SVD of the whitened matrix L_G^T matrix L_C, mapped back, is the best
approximation of its rank, and its singular values are comparable between layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lbm_lora.blocks import energy
from lbm_lora.errors import InputError
from lbm_lora.factorize.factors import Factors, product_svd, rounded_down, stored_factors
from lbm_lora.factorize.grid import Counts, Grid, nearest
from lbm_lora.factorize.moments import Moment
from lbm_lora.factorize.roots import Root
from lbm_lora.factorize.svd import truncated_svd

RIDGE = 1e-3
"""Ridge, as a fraction of a moment's mean variance: on the bundled mini model this is best for six images, while one
image needs 1e-2 to 1e-1."""

_FAR = 0.01  # of the energy: a rest above this is known to four digits from energies in fp32
_CUTOFF = 1e-6  # directions of the rounded `down` below this fraction of the largest are dropped


@dataclass(frozen=True)
class Whitening:
    """Map from matrix to L_G^T matrix L_C and back. A root of None is the identity.

    Attributes:
        inputs: root of C.
        outputs: root of G, without its scale.
        factor: square root of the scale.
    """

    inputs: Root | None = None
    outputs: Root | None = None
    factor: float = 1.0

    def __call__(self, matrix: Float[Tensor, "out columns"]) -> Float[Tensor, "out columns"]:
        """Return L_G^T matrix L_C."""
        return self.columns(self.rows(matrix))

    def rows(self, matrix: Float[Tensor, "rank columns"]) -> Float[Tensor, "rank columns"]:
        """Return matrix L_C."""
        return matrix if self.inputs is None else self.inputs.times(matrix)

    def columns(self, matrix: Float[Tensor, "out rank"]) -> Float[Tensor, "out rank"]:
        """Return L_G^T matrix."""
        return matrix * self.factor if self.outputs is None else self.outputs.times(matrix.mT).mT.mul_(self.factor)

    def undo_rows(self, right: Float[Tensor, "rank columns"]) -> Float[Tensor, "rank columns"]:
        """Return right L_C^-1."""
        return right if self.inputs is None else self.inputs.solve(right)

    def undo_columns(self, left: Float[Tensor, "out rank"]) -> Float[Tensor, "out rank"]:
        """Return L_G^-T left."""
        return (left if self.outputs is None else self.outputs.solve(left.mT).mT) / self.factor


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Cost of an error in a layer's matrix. A side that is None weights all its directions equally.

    Attributes:
        inputs: C, the mean second moment of the vectors that the matrix multiplies.
        outputs: G, the second moment of the gradient at its outputs, summed over an image's token positions.
        scale: E ||gradient of the matrix||^2 / (tr(C) tr(G)), over all columns: how the errors at an image's token
            positions add up; 1 if they are independent. On the bundled mini model it is 14 for an attention's to_v,
            whose errors are averaged over all positions, and 0.25 for its to_out.
    """

    inputs: Moment | None = None
    outputs: Moment | None = None
    ridge: float = RIDGE
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise InputError(f"the scale of a layer's weights must be above 0 and finite, got {self.scale:g}.")

    def whitening(self) -> Whitening:
        """Return the roots of both sides, at O(n^3) for a dense moment: compute them once per layer."""
        inputs, outputs = (None if side is None else side.root(self.ridge) for side in (self.inputs, self.outputs))
        return Whitening(inputs, outputs, math.sqrt(self.scale))


@dataclass(frozen=True)
class WeightedSVD:
    """Decomposition with matrix ~ left @ diag(values) @ right; its first vectors are the best of any lower rank.

    Attributes:
        left: (out, rank), L_G^-T times orthonormal columns.
        values: (rank,), descending, non-negative: the singular values of the whitened matrix.
        right: (rank, columns), orthonormal rows times L_C^-1.
        rest: the squared error that these ranks leave; 0 if they are all the ranks of the matrix.
    """

    left: Float[Tensor, "out rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank columns"]
    rest: float

    @property
    def squares(self) -> Float64[np.ndarray, " rank"]:
        """values^2: how much each rank reduces the squared error."""
        return self.values.double().square().cpu().numpy()

    @property
    def energy(self) -> float:
        """||L_G^T matrix L_C||_F^2: the squared error of rank 0."""
        return self.rest + float(self.squares.sum())

    def first(self, rank: int) -> "WeightedSVD":
        """Return the decomposition of a lower rank."""
        rest = self.rest + float(self.squares[rank:].sum())
        return WeightedSVD(self.left[:, :rank], self.values[:rank], self.right[:rank], rest)


def weighted_svd(
    matrix: Float[Tensor, "out columns"], rank: int, whitening: Whitening, *, seed: int, has_spare: bool = False
) -> WeightedSVD:
    """Return the truncated SVD of the whitened matrix, mapped back.

    Args:
        matrix: fp32, finite.
        rank: 1 to min(out, columns).
    """
    white = whitening(matrix)
    whole = energy(white)
    svd = truncated_svd(white, rank, seed=seed, squared_norm=whole, has_spare=has_spare)
    left, right = whitening.undo_columns(svd.left), whitening.undo_rows(svd.right)
    if len(svd.values) == min(matrix.shape):
        return WeightedSVD(left, svd.values, right, rest=0.0)
    rest = whole - float(svd.values.double().square().sum())
    if svd.exact or rest < _FAR * whole:
        # the norm of the difference, since the difference of the two energies loses anything below 1e-7 of them
        rest = energy(white.addmm(svd.left * svd.values, svd.right, alpha=-1))
    return WeightedSVD(left, svd.values, right, rest)


def weighted_product_svd(factors: Factors, whitening: Whitening) -> WeightedSVD:
    """Return the complete SVD of the whitened up @ down, mapped back; see `weighted_svd`.

    Both sides are whitened as factors: L_G^T up and down L_C are as thin as up and down.
    """
    white = Factors(whitening.columns(factors.up.float()), whitening.rows(factors.down.float()))
    svd = product_svd(white)
    return WeightedSVD(whitening.undo_columns(svd.left), svd.values, whitening.undo_rows(svd.right), rest=0.0)


def weighted_factors(svd: WeightedSVD, dtype: torch.dtype, whitening: Whitening) -> Factors:
    """Return the best factors for a truncated decomposition, rounded to `dtype`.

    `down` and `up` share the scale of each component; `down` is rounded, then `up` is refitted to the rounded `down` in
    the weighted norm: up = matrix C down^T (down C down^T)^-1, which does not depend on G.
    """
    lengths = torch.linalg.vector_norm(svd.right, dim=1)
    heights = torch.linalg.vector_norm(svd.left, dim=0) * svd.values
    scale = torch.where((lengths > 0) & (heights > 0), (heights / lengths).sqrt(), torch.ones_like(lengths))
    down = rounded_down(scale[:, None] * svd.right, dtype)
    return stored_factors(_fitted(svd, down.float() / scale[:, None], whitening) / scale, down, dtype)


def _fitted(svd: WeightedSVD, down: Float[Tensor, "rank columns"], whitening: Whitening) -> Float[Tensor, "out rank"]:
    """Return the best `up` for a given `down`."""
    rows = whitening.rows(down)
    products = rows @ whitening.rows(svd.right).mT
    inverse = torch.linalg.pinv(rows @ rows.mT, rtol=_CUTOFF, hermitian=True)
    return (svd.left * svd.values) @ (inverse @ products).mT


def packed_factors(svd: WeightedSVD, widths: Sequence[int], whitening: Whitening, weights: Weights) -> Counts:
    """Return the best factors for the ranks of a decomposition at given numbers of bits.

    `down` is rounded, then `up` is fitted to it in the weighted norm, and rounded; both pass errors on (see `grid`).

    Args:
        svd: all ranks that are known: what those left out say about the fit counts too.
        widths: bits of each rank, 0 to leave it out; at least one is above.
    """
    kept = [index for index, width in enumerate(widths) if width]
    bits = [widths[index] for index in kept]
    inputs, outputs = (
        None if side is None else side.variances().repeat_interleave(side.repeat).float()
        for side in (weights.inputs, weights.outputs)
    )
    down, step = nearest(svd.right[kept], bits, variances=inputs, root=whitening.inputs)
    fitted = _fitted(svd, down.float() * step[:, None], whitening) * step
    up, unit = nearest(fitted.mT, bits, variances=outputs, root=whitening.outputs)
    return Counts(up.mT, down, Grid(tuple(bits), unit))
