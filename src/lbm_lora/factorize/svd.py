"""Truncated singular value decomposition: exact where it is cheap, block Krylov where it pays.

The randomized method is block Krylov iteration (Musco and Musco, "Randomized Block Krylov Methods for Stronger and
Faster Approximate Singular Value Decomposition", 2015, arXiv 1504.05477): it keeps the blocks of all rounds, and
so comes far closer to the optimum than subspace iteration at the same number of products.

It checks itself. One more half round on the found right vectors would catch `residual` more energy; where that is
more than a set part of the error, another round is made, and after the last one the exact method takes over.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.errors import InputError

OVERSAMPLING = 8
"""Columns beyond the rank. Two Krylov rounds with 8 come within 1.0001 of the optimum on full-size layers."""

_FIRST_ROUNDS = 2
_LAST_ROUNDS = 6
_TOLERANCE = 3e-4  # of the squared error: what one more half round may gain
_FLOOR = 1e-11  # of the squared norm: below it, fp32 products are noise
_EXACT_BELOW = 192  # short sides up to here: LAPACK is as fast
_EXACT_SHARE = 6  # randomized where rank * share < short side


@dataclass(frozen=True)
class TruncatedSVD:
    """matrix ~ left @ diag(values) @ right.

    Attributes:
        left: (out, rank), orthonormal columns.
        values: (rank,), falling, not negative.
        right: (rank, columns), orthonormal rows.
        exact: whether LAPACK's decomposition was used.
    """

    left: Float[Tensor, "out rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank columns"]
    exact: bool


def truncated_svd(matrix: Float[Tensor, "out columns"], rank: int, *, seed: int) -> TruncatedSVD:
    """The best approximation of `rank`: squared error within 0.1 % of the optimum's, exact for small matrices.

    Args:
        matrix: fp32, finite.
        rank: 1 to min(out, columns).
        seed: of the random start; the same seed, device and thread count give the same bytes.

    Raises:
        InputError: the decomposition does not converge, which finite values do not cause in practice.
    """
    short = min(matrix.shape)
    if short > _EXACT_BELOW and rank * _EXACT_SHARE < short:
        for rounds in range(_FIRST_ROUNDS, _LAST_ROUNDS + 1):
            found = _block_krylov(matrix, rank, rounds=rounds, seed=seed)
            if _has_converged(matrix, found):
                return found
    return exact_svd(matrix, rank)


def exact_svd(matrix: Float[Tensor, "out columns"], rank: int) -> TruncatedSVD:
    """LAPACK's thin SVD, never with full matrices; a long matrix goes through QR on its short side first."""
    rows, columns = matrix.shape
    if columns > 2 * rows:
        flipped = exact_svd(matrix.mT, rank)
        return TruncatedSVD(flipped.right.mT, flipped.values, flipped.left.mT, exact=True)
    if rows > 2 * columns:
        orthogonal, triangular = torch.linalg.qr(matrix)
        left, values, right = _thin_svd(triangular)
        left = orthogonal @ left
    else:
        left, values, right = _thin_svd(matrix)
    return TruncatedSVD(left[:, :rank], values[:rank], right[:rank], exact=True)


def _thin_svd(matrix: Float[Tensor, "out columns"]) -> tuple[Tensor, Tensor, Tensor]:
    """In fp32, and once more in fp64 should LAPACK not converge."""
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        try:
            left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        except torch.linalg.LinAlgError as error:
            raise InputError(f"the SVD of a {tuple(matrix.shape)} matrix does not converge: {error}.") from None
        return left.to(matrix.dtype), values.to(matrix.dtype), right.to(matrix.dtype)


def _block_krylov(matrix: Float[Tensor, "out columns"], rank: int, *, rounds: int, seed: int) -> TruncatedSVD:
    """Rayleigh-Ritz on the span of [A G, (A A^T) A G, ...]: `rounds` blocks of rank + oversampling columns.

    The basis stays orthonormal as it grows, so each block's product with the matrix serves twice: for the next block,
    and as its part of the projected matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], rank + OVERSAMPLING, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    projected = basis.mT @ matrix
    rows = projected
    for _ in range(rounds - 1):
        scale = rows.abs().amax().clamp(min=torch.finfo(rows.dtype).tiny)  # A A^T may leave the range of fp32
        block = _orthonormal_beside(basis, matrix @ (rows / scale).mT)
        rows = block.mT @ matrix
        basis, projected = torch.cat((basis, block), dim=1), torch.cat((projected, rows))
    found = exact_svd(projected, rank)
    return TruncatedSVD(basis @ found.left, found.values, found.right, exact=False)


def _orthonormal_beside(basis: Float[Tensor, "out m"], block: Float[Tensor, "out n"]) -> Float[Tensor, "out n"]:
    """An orthonormal basis of what `block` adds to `basis`; projected twice, since once leaves rounding errors."""
    for _ in range(2):
        block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
    return block


def _has_converged(matrix: Float[Tensor, "out columns"], found: TruncatedSVD) -> bool:
    """Whether one more half round, up = matrix @ right^T, would hardly lower the error."""
    energy = _energy(matrix)
    error = max(energy - _energy(found.values), 0.0)
    gain = _energy(matrix @ found.right.mT - found.left * found.values)
    return gain <= _TOLERANCE * error + _FLOOR * energy


def _energy(values: Tensor) -> float:
    """Sum of squares, in fp64: the squares of very small or large values leave the range of fp32."""
    return torch.linalg.vector_norm(values, dtype=torch.float64).item() ** 2
