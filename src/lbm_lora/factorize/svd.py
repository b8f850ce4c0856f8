"""Truncated singular value decomposition: exact where it is cheap, block Krylov where it pays.

The randomized method is block Krylov iteration (Musco and Musco, "Randomized Block Krylov Methods for Stronger and
Faster Approximate Singular Value Decomposition", 2015, arXiv 1504.05477): it keeps the blocks of all rounds, and
so comes far closer to the optimum than subspace iteration at the same number of products.

It checks itself. The last product, with the right vectors that were found, is half a round more: what energy it gains
tells how much was still missing. Where that is more than a set part of the error, rounds are added, and after the last
one the exact method takes over.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.blocks import energy
from lbm_lora.errors import InputError

SMALLEST_BLOCK = 16
"""Columns of a block at least: products with fewer take as long. A block has as many columns as the rank asks for."""

_FIRST_ROUNDS = 4
_LAST_ROUNDS = 10
_TOLERANCE = 1e-3  # of the squared error: what the last half round may gain. Half of it is then left at most
_FLOOR = 1e-11  # of the squared norm: below it, fp32 products are noise
_EXACT_BELOW = 192  # short sides up to here: LAPACK is as fast
_EXACT_SHARE = 6  # randomized where rank * share < short side


@dataclass(frozen=True)
class TruncatedSVD:
    """matrix ~ left @ diag(values) @ right.

    The first vectors of a decomposition are the decomposition of a lower rank: see `first`.

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

    def first(self, rank: int) -> "TruncatedSVD":
        """The decomposition of a lower rank."""
        return TruncatedSVD(self.left[:, :rank], self.values[:rank], self.right[:rank], self.exact)


def truncated_svd(
    matrix: Float[Tensor, "out columns"], rank: int, *, seed: int, squared_norm: float | None = None
) -> TruncatedSVD:
    """The best approximation of `rank`: error within 0.1 % of the optimum's, exact for small matrices.

    Args:
        matrix: fp32, finite.
        rank: 1 to min(out, columns).
        seed: of the random start; the same seed, device and thread count give the same bytes.
        squared_norm: of the matrix, where it is known already.

    Raises:
        InputError: the decomposition does not converge, which finite values do not cause in practice.
    """
    short = min(matrix.shape)
    if short > _EXACT_BELOW and rank * _EXACT_SHARE < short:
        total = energy(matrix) if squared_norm is None else squared_norm
        found = _block_krylov(matrix, rank, seed=seed, total=total)
        if found is not None:
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
        left = orthogonal @ left[:, :rank]
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


def _block_krylov(matrix: Float[Tensor, "out columns"], rank: int, *, seed: int, total: float) -> TruncatedSVD | None:
    """Rayleigh-Ritz on the span of [A G, (A A^T) A G, ...]; None where it has not converged.

    The basis lies on the short side of A. It stays orthonormal as it grows, so each block's product with A serves
    twice: for the next block, and as its part of the projected matrix.
    """
    wide = matrix.shape[0] <= matrix.shape[1]

    def across(basis: Tensor) -> Tensor:
        """(short, n) -> (n, long). Never with a transposed A: that product takes half as long again."""
        return basis.mT @ matrix if wide else (matrix @ basis).mT

    def back(rows: Tensor) -> Tensor:
        """(n, long) -> (short, n)."""
        return matrix @ rows.mT if wide else (rows @ matrix).mT

    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(max(rank, SMALLEST_BLOCK), max(matrix.shape), generator=generator).to(matrix.device)
    basis = torch.linalg.qr(back(start)).Q
    projected = rows = across(basis)
    for rounds in range(2, _LAST_ROUNDS + 1):
        if basis.shape[1] + rows.shape[0] > min(matrix.shape):
            return None  # LAPACK has less to do
        block = _orthonormal_beside(basis, back(_scaled(rows)))
        rows = across(block)
        basis, projected = torch.cat((basis, block), dim=1), torch.cat((projected, rows))
        if rounds >= _FIRST_ROUNDS:
            found = _leading_rows(projected, rank)
            product = back(found)
            within = basis.mT @ product
            error = max(total - energy(within), 0.0)
            if energy(product - basis @ within) <= _TOLERANCE * error + _FLOOR * total:
                short, values, turn = _thin_svd(product)
                long = turn @ found
                left, right = (short, long) if wide else (long.mT, short.mT)
                return TruncatedSVD(left, values, right, exact=False)
    return None


def _leading_rows(projected: Float[Tensor, "m columns"], rank: int) -> Float[Tensor, "rank columns"]:
    """Orthonormal rows that span the first right singular vectors of a matrix of few rows.

    By the Gram matrix of the rows: its rounding errors are those of the products that made them. The QR makes up for
    rows of small values.
    """
    rows = _scaled(projected)
    vectors = torch.linalg.eigh((rows @ rows.mT).double()).eigenvectors[:, -rank:]
    return torch.linalg.qr((vectors.mT.to(rows.dtype) @ rows).mT).Q.mT


def _scaled(rows: Float[Tensor, "n columns"]) -> Float[Tensor, "n columns"]:
    """The rows with their largest value at 1: the squares of very small or large ones leave the range of fp32."""
    return rows / rows.abs().amax().clamp(min=torch.finfo(rows.dtype).tiny)


def _orthonormal_beside(basis: Float[Tensor, "out m"], block: Float[Tensor, "out n"]) -> Float[Tensor, "out n"]:
    """An orthonormal basis of what `block` adds to `basis`; projected twice, since once leaves rounding errors."""
    for _ in range(2):
        block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
    return block
