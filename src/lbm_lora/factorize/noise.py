"""Tell singular values of a delta from the rounding noise of a 16-bit checkpoint.

The largest singular value of a random (m, n) matrix with independent elements of standard deviation s is about
s * (sqrt(m) + sqrt(n)): the edge of the law of Marchenko and Pastur, 1967 (Bai, Silverstein and Yin, 1988, for the
largest). A rank above that edge keeps mostly signal; a rank below it copies noise.

An ulp scales with its weight, so rows or columns of larger weights have more noise, and with the mean over all
elements noise would exceed the edge. Therefore the norms of the longest row and the longest column of the standard
deviations replace s * sqrt(n) and s * sqrt(m) (Bandeira and van Handel, "Sharp nonasymptotic bounds on the norm of
random matrices with independent entries", 2016, arXiv 1408.6185).

Rounding is assumed uniform over one ulp. If most weights changed by far less than their ulp, most of the delta is 0,
and the rest is neither as independent nor as large as these edges assume.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_DIGITS = {torch.bfloat16: 7, torch.float16: 10}  # of the mantissa
_ROWS = 256


def rounding_edge(tuned: Float[Tensor, "out columns"]) -> float:
    """Return the largest singular value that storage rounding adds to the delta of a matrix.

    Args:
        tuned: in its storage dtype; the edge is 0 for dtypes wider than bf16 and fp16.
    """
    digits = _DIGITS.get(tuned.dtype)
    if digits is None or not tuned.numel():
        return 0.0
    smallest = torch.finfo(tuned.dtype).tiny
    longest, columns = 0.0, torch.zeros(tuned.shape[1], dtype=torch.float64, device=tuned.device)
    for block in tuned.split(_ROWS):
        exponents = torch.frexp(block.float().abs().clamp(min=smallest)).exponent - 1
        variances = torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), 2 * (exponents - digits)) / 12
        longest = max(longest, float(variances.sum(dim=1).max()))
        columns += variances.sum(dim=0)
    return math.sqrt(longest) + math.sqrt(float(columns.max()))


def rank_above(values: Float[Tensor, " k"], edge: float) -> int:
    """Return how many singular values are above an edge: the ranks that are worth their bytes."""
    return int((values > edge).sum())
