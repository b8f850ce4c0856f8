"""Truncated singular value decomposition: exact where that is cheap, block Krylov where it is faster."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.blocks import energy
from lbm_lora.errors import InputError
from lbm_lora.factorize.krylov import Subspace, leading_subspace, wide_subspace

_EXACT_BELOW = 192  # short sides up to this: LAPACK is as fast
_EXACT_SHARE = 6  # randomized where rank * share < short side


@dataclass(frozen=True)
class TruncatedSVD:
    """Decomposition with matrix ~ left @ diag(values) @ right.

    The first vectors of a decomposition are the decomposition of a lower rank; see `first`.

    Attributes:
        left: (out, rank), orthonormal columns.
        values: (rank,), descending, non-negative.
        right: (rank, columns), orthonormal rows.
        exact: whether LAPACK's decomposition was used.
    """

    left: Float[Tensor, "out rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank columns"]
    exact: bool

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three factors."""
        return self.left, self.values, self.right

    def first(self, rank: int) -> "TruncatedSVD":
        """Return the decomposition of a lower rank."""
        return TruncatedSVD(self.left[:, :rank], self.values[:rank], self.right[:rank], self.exact)


def truncated_svd(
    matrix: Float[Tensor, "out columns"],
    rank: int,
    *,
    seed: int,
    squared_norm: float | None = None,
    has_spare: bool = False,
) -> TruncatedSVD:
    """Return the best approximation of `rank`: error within 0.1 % of the optimum, exact for small matrices.

    Args:
        matrix: fp32, finite.
        rank: 1 to min(out, columns).
        seed: seed of the random start; the same seed, device and thread count give the same bytes.
        squared_norm: squared norm of the matrix, if already known.
        has_spare: whether the rank is higher than what is likely to be used, so that the last ranks may be less
            accurate: several times as fast at high ranks. See `wide_subspace`.
    """
    short = min(matrix.shape)
    if short > _EXACT_BELOW and (has_spare or rank * _EXACT_SHARE < short):
        squared_norm = energy(matrix) if squared_norm is None else squared_norm
        found = wide_subspace(matrix, rank, seed=seed, squared_norm=squared_norm) if has_spare else None
        if found is None and rank * _EXACT_SHARE < short:
            found = leading_subspace(matrix, rank, seed=seed, squared_norm=squared_norm)
        if found is not None:
            return _within(found, rank, is_wide=matrix.shape[0] <= matrix.shape[1])
    return exact_svd(matrix, rank)


def _within(subspace: Subspace, rank: int, *, is_wide: bool) -> TruncatedSVD:
    """Return the best approximation whose rows, on the long side, lie in a subspace.

    Args:
        is_wide: whether the rows of the matrix are its long side.
    """
    is_larger = len(subspace.rows) > rank
    short, values, turn = exact_svd(subspace.product, rank).parts if is_larger else _thin_svd(subspace.product)
    long = turn @ subspace.rows
    left, right = (short, long) if is_wide else (long.mT, short.mT)
    return TruncatedSVD(left, values, right, exact=False)


def exact_svd(matrix: Float[Tensor, "out columns"], rank: int) -> TruncatedSVD:
    """Run LAPACK's thin SVD, never with full matrices; a long matrix is first reduced by QR on its short side."""
    rows, columns = matrix.shape
    if columns > 2 * rows:
        flipped = exact_svd(matrix.mT, rank)
        return TruncatedSVD(flipped.right.mT, flipped.values, flipped.left.mT, exact=True)
    if rows > 2 * columns:
        orthogonal, triangular = torch.linalg.qr(matrix)
        left, values, right = _thin_svd(triangular)
        left = orthogonal @ left[:, :rank]
    else:
        left, values, right = _thin_svd(matrix)
    return TruncatedSVD(left[:, :rank], values[:rank], right[:rank], exact=True)


def _thin_svd(matrix: Float[Tensor, "out columns"]) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose in fp32, and again in fp64 if LAPACK does not converge."""
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        try:
            left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        except torch.linalg.LinAlgError as error:
            raise InputError(f"the SVD of a {tuple(matrix.shape)} matrix does not converge: {error}.") from None
        return left.to(matrix.dtype), values.to(matrix.dtype), right.to(matrix.dtype)
