"""Factorize a delta's matrix into the two factors that a file stores.

Below full rank: down = sqrt(S) V^T of the truncated SVD, rounded to the stored dtype, then the best `up` for it, which
is U sqrt(S) except for the rounding. The split keeps both factors at the same scale. Fitting `up` recovers the error
of a randomized SVD and the error of rounding `down` within its row space: a few percent at low rank, half near full.

At full rank no decomposition is needed: the matrix itself is one factor, the identity on its short side the other.
This takes the same bytes as an SVD's factors and loses only the rounding of one matrix; deltas of bf16 checkpoints
often survive even that bit for bit.

A sum of products is one product of two thin matrices, all `up` side by side and all `down` on top of each other. QR of
both leaves a small square matrix, whose SVD is that of the sum: memory and time depend on the ranks, and the matrix
itself is never built unless the ranks reach its short side.

In 8 bits, factors are integers from -127 to 127 with one scale (unit) per rank: up @ down = (up8 * unit) @ down8. The
largest value in each row of `down` and each column of `up` becomes 127; the others are rounded to multiples of a 127th
of it. Since a scale can move from one factor to the other, one unit per rank serves both. Units have 16 significant
bits, so that every value is exact in fp32 and rounding is idempotent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from lbm_lora.errors import InputError, Option
from lbm_lora.factorize.svd import TruncatedSVD, exact_svd, truncated_svd

_KEPT = 0.01  # how much rounding may change the squared length of a row of V^T before the row counts as lost
_CUTOFF = 1e-4  # directions of lost rows below this fraction of the largest are dropped
LARGEST = 127
_DROPPED = 8  # of the 24 significant bits of fp32
_MANTISSA, _BIAS = 23, 127  # bits of fp32's fraction, and the offset of its exponent


@dataclass(frozen=True)
class Factors:
    """Factors with matrix ~ up @ down, holding the stored values."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank columns"]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def product(self) -> Float[Tensor, "out columns"]:
        """Return up @ down in fp32."""
        dense = self.dense()
        return self.up.float() @ self.down.float() if dense is None else dense.clone()

    def dense(self) -> Float[Tensor, "out columns"] | None:
        """Return the matrix in fp32, without a product, if one factor is the identity, as at full rank; else None."""
        if _is_identity(self.up):
            return self.down.float()
        return self.up.float() if _is_identity(self.down) else None


def factorize(matrix: Float[Tensor, "out columns"], rank: int, dtype: torch.dtype, *, seed: int) -> Factors:
    """Return the best factors of a rank, rounded to `dtype`.

    Args:
        matrix: fp32, finite.
        rank: 1 or more, capped at min(out, columns).
        dtype: the stored dtype: fp32, fp16, bf16, or int8.
    """
    return factorize_ranks(matrix, [rank], dtype, seed=seed)[0]


def factorize_ranks(
    matrix: Float[Tensor, "out columns"],
    ranks: Sequence[int],
    dtype: torch.dtype,
    *,
    seed: int,
    squared_norm: float | None = None,
) -> list[Factors]:
    """Return the best factors for several ranks, in order, from one decomposition; see `factorize`."""
    bound = min(matrix.shape)
    highest = max((rank for rank in ranks if rank < bound), default=0)
    svd = truncated_svd(matrix, highest, seed=seed, squared_norm=squared_norm) if highest else None
    return [
        _full_rank(matrix, dtype) if svd is None or rank >= bound else factors_of(svd.first(rank), dtype)
        for rank in ranks
    ]


def factors_of(svd: TruncatedSVD, dtype: torch.dtype) -> Factors:
    """Return the best factors for a truncated decomposition, rounded to `dtype`."""
    root = svd.values.sqrt()
    down = rounded_down(root[:, None] * svd.right, dtype)
    return stored_factors(_refit(svd, down.float(), root), down, dtype)


def rounded_down(down: Float[Tensor, "rank columns"], dtype: torch.dtype) -> Float[Tensor, "rank columns"]:
    """Return `down` with its stored values, to which `up` is then fitted; fp32 for int8."""
    return on_grid(down) if dtype == torch.int8 else rounded(down, dtype)


def stored_factors(up: Float[Tensor, "out rank"], down: Float[Tensor, "rank columns"], dtype: torch.dtype) -> Factors:
    """Return both factors with their stored values; fp32 for int8."""
    if dtype == torch.int8:
        return quantize(up, down).factors()
    return Factors(rounded(up, dtype), rounded(down, dtype))


def dense_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of dense deltas stored with factors of `dtype`: without ranks they have no unit for int8."""
    return torch.float16 if dtype == torch.int8 else dtype


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in the stored dtype."""
    stored = values.to(dtype, copy=True)
    if not torch.isfinite(stored).all():
        largest = values.abs().max().item()
        wider = ("Store them in bf16: ", Option("save_precision"), " bf16.")
        raise InputError(
            f"values up to {largest:g} exceed the range of {str(dtype).removeprefix('torch.')}. ",
            *(wider if dtype == torch.float16 else ("Is the checkpoint damaged, or its training diverged?",)),
        )
    return stored


def _is_identity(factor: Tensor) -> bool:
    rows, columns = factor.shape
    return rows == columns and torch.equal(factor, torch.eye(rows, dtype=factor.dtype, device=factor.device))


def _full_rank(matrix: Float[Tensor, "out columns"], dtype: torch.dtype) -> Factors:
    exact = exact_factors(matrix)
    return stored_factors(exact.up, exact.down, dtype)


def _refit(
    svd: TruncatedSVD, down: Float[Tensor, "rank columns"], root: Float[Tensor, " rank"]
) -> Float[Tensor, "out rank"]:
    """Return the best `up` for a given `down`: argmin ||left diag(values) right - up @ down||.

    The truncated remainder is orthogonal to `right`, so it would change `up` only through the rounding of `down`. The
    rows of down / root are nearly orthonormal, so the normal equations are well conditioned. The exceptions are rows
    that are zero or that fp16 flushed to zero (its smallest number is 6e-8); the pseudo-inverse drops them.
    """
    scale = torch.where(root > 0, root, torch.ones_like(root))
    rows = down / scale[:, None]
    gram, products = rows @ rows.mT, (rows @ svd.right.mT) @ (svd.left * svd.values).mT
    if ((gram.diagonal() - 1).abs() > _KEPT).any():
        return (torch.linalg.pinv(gram, rtol=_CUTOFF, hermitian=True) @ products).mT / scale
    return (torch.linalg.inv(gram) @ products).mT / scale


def concatenated(terms: Sequence[Factors]) -> Factors:
    """Return factors whose product is the sum of the terms': the ranks add up."""
    ups, downs = [term.up.float() for term in terms], [term.down.float() for term in terms]
    return Factors(torch.cat(ups, dim=1), torch.cat(downs))


def exact_factors(matrix: Float[Tensor, "out columns"]) -> Factors:
    """Return a matrix as fp32 factors, one of which is the identity on its short side."""
    values = matrix.float()
    rows, columns = values.shape
    identity = torch.eye(min(rows, columns), device=values.device)
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


@dataclass(frozen=True)
class EightBit:
    """Factors as a file stores them.

    Attributes:
        unit: (rank,), fp32, positive.
    """

    up: Int8[Tensor, "out rank"]
    down: Int8[Tensor, "rank columns"]
    unit: Float32[Tensor, " rank"]

    def factors(self) -> Factors:
        return spread(self.up, self.down, self.unit)


def spread(up: Tensor, down: Tensor, unit: Float32[Tensor, " rank"]) -> Factors:
    """Return whole numbers with a unit as factors in fp32, exactly, with each unit split about evenly between them.

    `down` gets a power of two: that costs no precision, and neither factor leaves the range of fp16.
    """
    share = root_of_unit(unit)
    return Factors(up.float() * (unit / share), down.float() * share[:, None])


def quantize(up: Float[Tensor, "out rank"], down: Float[Tensor, "rank columns"]) -> EightBit:
    """Return the nearest factors in 8 bits, each rounded on its own; exact if they are in 8 bits already."""
    across = _units(down.float(), dim=1)
    moved = up.float() * across  # the product of two units may have more digits than are kept
    unit = _units(moved, dim=0)
    whole_up, whole_down = _whole(moved, unit), _whole(down.float(), across[:, None])
    counts = whole_up.any(dim=0) & whole_down.any(dim=1)  # a rank that is zero on one side is zero on both
    return EightBit(whole_up * counts, whole_down * counts[:, None], torch.where(counts, unit, torch.ones_like(unit)))


def on_grid(rows: Float[Tensor, "rank columns"]) -> Float32[Tensor, "rank columns"]:
    """Return `down` as stored in 8 bits, up to the scale of its rows."""
    unit = _units(rows.float(), dim=1)[:, None]
    return _whole(rows.float(), unit).float() * unit


def grid_noise(vectors: Float[Tensor, "rows columns"], dim: int) -> Tensor:
    """Return the mean squared rounding error per element, unit^2 / 12, for each vector along `dim`."""
    return (vectors.abs().amax(dim=dim) / LARGEST).double().square() / 12


def _whole(values: Tensor, unit: Tensor) -> Tensor:
    return (values / unit).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)


def _units(values: Float32[Tensor, "rows columns"], dim: int) -> Tensor:
    """Return a 127th of the largest value, with 16 significant bits; 1 if all values are zero."""
    largest = values.abs().amax(dim=dim)
    if not torch.isfinite(largest).all():
        raise InputError("factors have values that are not finite and cannot be stored.")
    unit = shortened((largest / LARGEST).clamp_(min=torch.finfo(torch.float32).tiny))
    return torch.where(largest > 0, unit, torch.ones_like(unit))


def shortened(values: Float32[Tensor, " k"]) -> Float32[Tensor, " k"]:
    """Round to 16 significant bits."""
    half = 1 << (_DROPPED - 1)
    return ((values.view(torch.int32) + half) >> _DROPPED << _DROPPED).view(torch.float32)


def root_of_unit(unit: Float32[Tensor, " rank"]) -> Float32[Tensor, " rank"]:
    """Return the power of two nearest to the root of each unit, built from its bits: exact, as `pow` need not be."""
    exponents = torch.frexp(unit).exponent // 2
    return ((exponents + _BIAS) << _MANTISSA).to(torch.int32).view(torch.float32)
