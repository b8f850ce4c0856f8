"""Measure the error of an approximation to a delta, and tell its singular values from rounding noise.

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
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.blocks import DeltaSums, Workspace, absolutes, flat_blocks, squares, tiles
from lbm_lora.factorize.factors import Factors
from lbm_lora.factorize.matrix import to_matrix

_DIGITS = {torch.bfloat16: 7, torch.float16: 10}  # of the mantissa
_NOISE_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Sums over the values of one or several deltas: fp32 within blocks of 65536 values, fp64 over the blocks.

    Attributes:
        noise_sq: sum of ulp(tuned)^2 / 12, the variance added by rounding tuned to bf16 or fp16 storage; 0 if the delta
            is zero, since an untrained parameter keeps the base's rounding.
    """

    numel: int = 0
    delta_sq: float = 0.0
    error_sq: float = 0.0
    delta_abs: float = 0.0
    error_abs: float = 0.0
    noise_sq: float = 0.0

    def __add__(self, other: "Measure") -> "Measure":
        return Measure(
            numel=self.numel + other.numel,
            delta_sq=self.delta_sq + other.delta_sq,
            error_sq=self.error_sq + other.error_sq,
            delta_abs=self.delta_abs + other.delta_abs,
            error_abs=self.error_abs + other.error_abs,
            noise_sq=self.noise_sq + other.noise_sq,
        )

    @property
    def relative_error(self) -> float:
        """||delta - approximation||_F / ||delta||_F; 0 if both norms are zero, inf if only the delta is zero."""
        return _ratio(math.sqrt(self.error_sq), math.sqrt(self.delta_sq))

    @property
    def mean_error(self) -> float:
        """Mean |delta - approximation|."""
        return self.error_abs / self.numel if self.numel else 0.0

    @property
    def relative_mean_error(self) -> float:
        """Mean |delta - approximation| / mean |delta|, the documented measure."""
        return _ratio(self.error_abs, self.delta_abs)

    @property
    def noise_floor(self) -> float:
        """The part of the delta's norm that is storage rounding of tuned; no method can separate it."""
        return _ratio(math.sqrt(self.noise_sq), math.sqrt(self.delta_sq))


def measure_delta(numel: int, sums: DeltaSums) -> Measure:
    """Return the sums of a delta without an approximation; the error is the delta itself."""
    return Measure(
        numel=numel,
        delta_sq=sums.squares,
        error_sq=sums.squares,
        delta_abs=sums.absolutes,
        error_abs=sums.absolutes,
        noise_sq=sums.noise,
    )


def with_error(measured: Measure, delta: Tensor, approximation: Tensor | Factors | None) -> Measure:
    """Return `measured` with the error of an approximation; infinite if the approximation has non-finite values.

    Args:
        approximation: fp32 of the same shape, or the factors of its matrix; None means zero: the file has nothing.
    """
    if approximation is None:
        return measured
    error_sq = error_abs = 0.0
    for block in _error_blocks(delta, approximation):
        error_sq += squares(block)
        error_abs += absolutes(block, scratch=block)
    if not math.isfinite(error_sq):
        error_sq = error_abs = math.inf
    return replace(measured, error_sq=error_sq, error_abs=error_abs)


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
    for block in tuned.split(_NOISE_ROWS):
        exponents = torch.frexp(block.float().abs().clamp(min=smallest)).exponent - 1
        variances = torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), 2 * (exponents - digits)) / 12
        longest = max(longest, float(variances.sum(dim=1).max()))
        columns += variances.sum(dim=0)
    return math.sqrt(longest) + math.sqrt(float(columns.max()))


def rank_above(values: Float[Tensor, " k"], edge: float) -> int:
    """Return how many singular values are above an edge: the ranks that are worth their bytes."""
    return int((values > edge).sum())


def _error_blocks(delta: Tensor, approximation: Tensor | Factors) -> Iterator[Tensor]:
    """Yield delta - approximation block by block; a block may be overwritten, and is valid until the next one."""
    dense = approximation.dense() if isinstance(approximation, Factors) else None
    approximation = approximation if dense is None else dense.reshape(delta.shape)
    if isinstance(approximation, Tensor):
        for block, part in flat_blocks(delta.contiguous(), approximation.contiguous()):
            yield block - part
        return
    matrix, up, down = to_matrix(delta), approximation.up.float(), approximation.down.float()
    workspace = Workspace(matrix.device)
    for rows, columns in tiles(*matrix.shape):
        part = matrix[rows, columns]
        yield torch.addmm(part, up[rows], down[:, columns], alpha=-1, out=workspace.take(tuple(part.shape)))


def _ratio(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else math.inf
