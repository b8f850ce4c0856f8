"""The SVD of a sum of low-rank products, from their factors alone.

With all `up` side by side and all `down` on top of each other the sum is one product of two thin matrices. QR of both
leaves a small square matrix, whose SVD is that of the sum: memory and time depend on the ranks, and the
matrix itself is never built unless the ranks reach its short side.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.factorize.factors import Factors
from lbm_lora.factorize.svd import TruncatedSVD, exact_svd
from lbm_lora.factorize.weighted import WeightedSVD, Whitening


def concatenated(terms: Sequence[Factors]) -> Factors:
    """Return factors whose product is the sum of the terms': the ranks add up.

    Args:
        terms: one or more, of one shape.
    """
    ups, downs = [term.up.float() for term in terms], [term.down.float() for term in terms]
    return Factors(torch.cat(ups, dim=1), torch.cat(downs))


def exact_factors(matrix: Float[Tensor, "out columns"]) -> Factors:
    """Return a matrix as fp32 factors, one of which is the identity on its short side."""
    values = matrix.float()
    rows, columns = values.shape
    identity = torch.eye(min(rows, columns))
    return Factors(identity, values) if rows <= columns else Factors(values, identity)


def product_svd(factors: Factors) -> TruncatedSVD:
    """Return the complete SVD of up @ down: min(rank, out, columns) values, in fp32 and to its precision."""
    up, down = factors.up.float(), factors.down.float()
    if factors.rank >= min(up.shape[0], down.shape[1]):
        return exact_svd(up @ down, min(up.shape[0], down.shape[1]))
    left_frame, left = torch.linalg.qr(up)
    right_frame, right = torch.linalg.qr(down.mT)
    small = exact_svd(left @ right.mT, factors.rank)
    return TruncatedSVD(left_frame @ small.left, small.values, small.right @ right_frame.mT, exact=True)


def weighted_product_svd(factors: Factors, whitening: Whitening) -> WeightedSVD:
    """Return the complete SVD of the whitened up @ down, mapped back; see `weighted_svd`.

    Both sides are whitened as factors: L_G^T up and down L_C are as thin as up and down.
    """
    white = Factors(whitening.columns(factors.up.float()), whitening.rows(factors.down.float()))
    svd = product_svd(white)
    return WeightedSVD(whitening.undo_columns(svd.left), svd.values, whitening.undo_rows(svd.right), rest=0.0)
