"""Block Krylov iteration: the leading singular vectors of a large matrix from a few products with it.

(Musco and Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value Decomposition",
2015, arXiv 1504.05477.) It keeps the blocks of all rounds, and so gets far closer to the optimum than subspace
iteration with the same number of products.

It checks itself. The last product, with the right vectors found so far, is half a round more: the energy that it gains
shows how much was still missing. If that is more than a set fraction of the error, rounds are added.

Products are most of the work. Processors that multiply bf16 natively do so two to three times as fast as fp32; on
these, the first rounds, which only search for directions, run on a bf16 copy. The last product is always fp32: it gives
the best approximation for the right vectors found. The copy loses about 1e-6 of the matrix's energy, which is
negligible compared with the error of a typical delta but too much for a small error; the rounds then continue in fp32
from where the first ones ended.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.blocks import energy

SMALLEST_BLOCK = 16
"""Fewest columns of a block, since products with fewer take as long. Higher ranks get larger blocks."""

_FIRST_ROUNDS = 4
_LAST_ROUNDS = 10
_TOLERANCE = 1e-3  # of the squared error: the most the last half round may gain. Half of that at most is still missing
_FLOOR = 1e-11  # of the squared norm: below it, fp32 products are noise
_BF16_FROM = 0.01  # of the squared norm: for squared errors above this, bf16 loses at most about 1e-4 of the error
_SAFE = (1e-24, 1e24)  # range of squared norms whose products, and their squares, fit fp32

_SPARE = 20  # of the short side: columns beyond the rank, which the accuracy of the last ranks needs
_SPARE_SHARE = 2  # of the rank: more do not help low ranks
_WIDE_ROUNDS = 3
_WIDE_SHARE = 3  # with more columns than this share of the short side, LAPACK is as fast
_WIDE_TOLERANCE = 0.02  # of the squared error that all columns leave


@dataclass(frozen=True)
class Subspace:
    """Approximate leading singular subspace of a matrix A.

    Attributes:
        rows: orthonormal rows on the long side of A that span its leading singular vectors as far as found.
        product: product of A with these rows, on its short side; fp32.
    """

    rows: Float[Tensor, "rank long"]
    product: Float[Tensor, "short rank"]


def leading_subspace(
    matrix: Float[Tensor, "out columns"], rank: int, *, seed: int, squared_norm: float
) -> Subspace | None:
    """Return the subspace of the leading singular vectors.

    Args:
        matrix: fp32, finite.
        rank: far below min(out, columns).
        seed: seed of the random start.
        squared_norm: squared norm of the matrix.

    Returns:
        None if the iteration has not converged, or if the exact method is cheaper.
    """
    if squared_norm and not _SAFE[0] < squared_norm < _SAFE[1]:
        size = math.sqrt(squared_norm)
        found = leading_subspace(matrix / size, rank, seed=seed, squared_norm=1.0)
        return found and Subspace(found.rows, found.product * size)
    exact = _Products(matrix)
    products = _Products(matrix.bfloat16()) if multiplies_bf16(matrix.device) else exact
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(max(rank, SMALLEST_BLOCK), max(matrix.shape), generator=generator).to(matrix.device)
    block = products.back(start)
    if products is not exact:
        found = _search(products, exact, block, rank, squared_norm, _FIRST_ROUNDS, least_error=_BF16_FROM)
        if found is not None and found.converged:
            return found.subspace
        block = block if found is None else found.subspace.product
    found = _search(exact, exact, block, rank, squared_norm, _LAST_ROUNDS)
    return found.subspace if found is not None and found.converged else None


def wide_subspace(
    matrix: Float[Tensor, "out columns"], rank: int, *, seed: int, squared_norm: float
) -> Subspace | None:
    """Return the leading subspace for a rank too high for `leading_subspace`.

    Subspace iteration with spare columns: a block of its own for each round would be as large as the matrix. The last
    rounds check it like those of Krylov. All run in bf16 where the processor multiplies it, and if the error is too
    small for that, the last ones in fp32.

    Args:
        rank: up to a third of min(out, columns). The error of this rank and of all below is within 1 % of the optimum;
            of a falling spectrum within 0.1 % up to three quarters of the rank.

    Returns:
        None if the iteration has not converged, or if the exact method is cheaper.
    """
    exact = _Products(matrix)
    width = rank + min(exact.short // _SPARE, max(rank // _SPARE_SHARE, SMALLEST_BLOCK))
    if width * _WIDE_SHARE > exact.short or not _SAFE[0] < squared_norm < _SAFE[1]:
        return None
    products = _Products(matrix.bfloat16()) if multiplies_bf16(matrix.device) else exact
    generator = torch.Generator().manual_seed(seed)
    block = products.back(torch.randn(width, exact.long, generator=generator).to(matrix.device))
    for _ in range(_WIDE_ROUNDS):
        block = products.back(products.across(torch.linalg.qr(block).Q))
    for _ in range(_LAST_ROUNDS):
        projected = products.across(torch.linalg.qr(block).Q).float()
        rows = torch.linalg.qr(projected.mT).Q.mT
        block = products.back(rows)
        kept = energy(block)
        gained, error = kept - energy(projected), max(squared_norm - kept, 0.0)
        if products is not exact and error < _BF16_FROM * squared_norm:
            products = exact
        elif gained <= _WIDE_TOLERANCE * error + _FLOOR * squared_norm:
            return Subspace(rows, block)
    return None


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the processor multiplies bf16 matrices natively, without converting them first."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class _Products:
    """Products of A with blocks on its short side, in the dtype of A; blocks are passed in fp32."""

    def __init__(self, matrix: Float[Tensor, "out columns"]) -> None:
        self._matrix = matrix
        self._wide = matrix.shape[0] <= matrix.shape[1]
        self.short, self.long = sorted(matrix.shape)

    def across(self, basis: Float[Tensor, "short n"]) -> Float[Tensor, "n long"]:
        """Multiply without transposing A: the transposed product takes half as long again."""
        basis = basis.to(self._matrix.dtype)
        return basis.mT @ self._matrix if self._wide else (self._matrix @ basis).mT

    def back(self, rows: Float[Tensor, "n long"]) -> Float[Tensor, "short n"]:
        rows = rows.to(self._matrix.dtype)
        return (self._matrix @ rows.mT if self._wide else (rows @ self._matrix).mT).float()


@dataclass(frozen=True)
class _Found:
    subspace: Subspace
    converged: bool


def _search(
    products: _Products,
    exact: _Products,
    block: Float[Tensor, "short n"],
    rank: int,
    squared_norm: float,
    last_round: int,
    least_error: float = 0.0,
) -> _Found | None:
    """Rayleigh-Ritz on the span of [A G, (A A^T) A G, ...].

    The basis lies on the short side of A. It stays orthonormal as it grows, so each block's product with A serves
    twice: for the next block, and as its part of the projected matrix.

    Args:
        products: products for the rounds.
        exact: the same in fp32, for the last product.
        least_error: squared errors below this fraction of the squared norm are too small for these products.

    Returns:
        None if the first block leaves less than that, or if LAPACK is cheaper.
    """
    width, count = block.shape[1], min(last_round, products.short // block.shape[1])
    basis, projected = block.new_empty(products.short, count * width), block.new_empty(count * width, products.long)
    found = None
    for number in range(1, last_round + 1):
        if number > count:
            return None
        old, new = slice(0, (number - 1) * width), slice((number - 1) * width, number * width)
        basis[:, new] = _orthonormal_beside(basis[:, old], block) if number > 1 else torch.linalg.qr(block).Q
        projected[new] = products.across(basis[:, new])
        if number == 1 and max(squared_norm - energy(projected[new]), 0.0) < least_error * squared_norm:
            return None
        if number >= _FIRST_ROUNDS:
            found = _ritz(exact, basis[:, : new.stop], projected[: new.stop], rank, squared_norm, least_error)
            if found.converged:
                break
        if number < last_round:
            block = products.back(projected[new])
    return found


def _ritz(
    exact: _Products,
    basis: Float[Tensor, "short m"],
    projected: Float[Tensor, "m long"],
    rank: int,
    squared_norm: float,
    least_error: float,
) -> _Found:
    """Return the best approximation of a rank within a basis, and whether it is good enough."""
    rows = _leading_rows(projected, rank)
    product = exact.back(rows)
    within = basis.mT @ product
    error = max(squared_norm - energy(within), 0.0)
    gained = energy(product - basis @ within)
    enough = gained <= _TOLERANCE * error + _FLOOR * squared_norm
    return _Found(Subspace(rows, product), enough and error >= least_error * squared_norm)


def _leading_rows(projected: Float[Tensor, "m columns"], rank: int) -> Float[Tensor, "rank columns"]:
    """Return orthonormal rows that span the first right singular vectors of a matrix with few rows.

    This uses the Gram matrix of the rows: its rounding errors are no larger than those already in the rows. The QR
    corrects rows of small values.
    """
    vectors = torch.linalg.eigh((projected @ projected.mT).double()).eigenvectors[:, -rank:]
    return torch.linalg.qr((vectors.mT.to(projected.dtype) @ projected).mT).Q.mT


def _orthonormal_beside(basis: Float[Tensor, "out m"], block: Float[Tensor, "out n"]) -> Float[Tensor, "out n"]:
    """Return an orthonormal basis of what `block` adds to `basis`.

    Projects three times: once leaves rounding errors, and where the block adds less than those, as after a steep fall
    of the spectrum, the QR makes unit columns of them, some of which twice leaves partly within the basis.
    """
    for _ in range(3):
        block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
    return block
