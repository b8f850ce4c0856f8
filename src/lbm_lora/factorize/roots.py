"""Square roots L of second moments, L L^T = M, as operators on the columns of a matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Root(Protocol):
    """Root L of a moment on the columns' side. On the rows' side: L^T matrix = times(matrix.mT).mT."""

    def times(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Return matrix @ L."""
        ...

    def solve(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Return matrix @ L^-1; zero where M is zero."""
        ...


@dataclass(frozen=True)
class TriangularRoot:
    """Cholesky factor of a dense M.

    Attributes:
        repeat: how many consecutive columns of the matrix each of the n stands for.
    """

    lower: Float[Tensor, "n n"]
    repeat: int = 1

    def times(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        return on_vectors(lambda vectors: vectors @ self.lower, matrix, self.repeat)

    def solve(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        return on_vectors(
            lambda vectors: torch.linalg.solve_triangular(self.lower, vectors, upper=False, left=False),
            matrix,
            self.repeat,
        )


@dataclass(frozen=True)
class LowRankRoot:
    """Root L = S (I + V diag(outer) V^T) of M = S (I + V V^T) S, with diagonal S and orthogonal columns V; O(n k).

    Since L^-1 = (I + V diag(inner) V^T) S^-1, no (n, n) matrix is needed.

    Attributes:
        scale: (n,), the diagonal of S; zero only where M is.
        vectors: (n, k), V.
        outer: (k,), 1 / (1 + sqrt(1 + |v|^2)).
        inner: (k,), -outer / sqrt(1 + |v|^2).
    """

    scale: Float[Tensor, " n"]
    vectors: Float[Tensor, "n k"]
    outer: Float[Tensor, " k"]
    inner: Float[Tensor, " k"]
    repeat: int = 1

    def times(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        return on_vectors(lambda rows: self._update(rows * self.scale, self.outer), matrix, self.repeat)

    def solve(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        return on_vectors(
            lambda rows: self._update(rows.clone(), self.inner) * _inverse(self.scale), matrix, self.repeat
        )

    def _update(self, rows: Float[Tensor, "m n"], weights: Float[Tensor, " k"]) -> Float[Tensor, "m n"]:
        """Change the rows, a copy of the caller's, and return them: to allocate another takes as long as the sum."""
        return rows.addmm_((rows @ self.vectors) * weights, self.vectors.mT)


def triangular_root(matrix: Float[Tensor, "n n"], floor: float, repeat: int = 1) -> TriangularRoot:
    """Return the root of a dense matrix, computed in fp64; see `cholesky`."""
    return TriangularRoot(cholesky(matrix, floor).float(), repeat)


def low_rank_root(diagonal: Float[Tensor, " n"], factor: Float[Tensor, "n k"], repeat: int = 1) -> LowRankRoot:
    """Return the fp64 root of diag(diagonal) + factor @ factor^T; the diagonal is above 0 where the factor is not 0."""
    scale = diagonal.sqrt()
    whitened = factor * _inverse(scale)[:, None]
    values, rotation = torch.linalg.eigh(whitened.mT @ whitened)
    stretch = (1 + values.clamp(min=0)).sqrt()
    outer = 1 / (1 + stretch)
    inner = -outer / stretch
    return LowRankRoot(scale.float(), (whitened @ rotation).float(), outer.float(), inner.float(), repeat)


def cholesky(matrix: Float[Tensor, "n n"], floor: float) -> Float[Tensor, "n n"]:
    """Return the lower factor of a symmetric fp64 matrix; eigenvalues that rounding made negative rise to `floor`."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(matrix)
    root = vectors * values.clamp(min=floor).sqrt()
    return torch.linalg.qr(root.mT).R.mT


def on_vectors(
    function: Callable[[Tensor], Tensor], matrix: Float[Tensor, "rows columns"], repeat: int
) -> Float[Tensor, "rows columns"]:
    """Apply a function of (m, n) to the n-vectors of a matrix whose columns are ordered (n, repeat)."""
    if repeat == 1:
        return function(matrix)
    return joined(function(vectors_of(matrix, repeat)), matrix.shape, repeat)


def joined(vectors: Float[Tensor, "m n"], shape: torch.Size, repeat: int) -> Float[Tensor, "rows columns"]:
    """Invert `vectors_of`."""
    return vectors if repeat == 1 else vectors.unflatten(0, (-1, repeat)).mT.reshape(shape)


def vectors_of(matrix: Float[Tensor, "rows columns"], repeat: int) -> Float[Tensor, "m n"]:
    """Reshape (rows, n * repeat) to (rows * repeat, n): one vector per row and kernel position."""
    return matrix if repeat == 1 else matrix.unflatten(1, (-1, repeat)).mT.flatten(0, 1)


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, torch.zeros_like(values))
