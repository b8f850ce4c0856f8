"""Measure the error of an approximation to a delta, in sums that add up over parameters."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lbm_lora.blocks import DeltaSums, Workspace, absolutes, flat_blocks, squares, tiles
from lbm_lora.factorize.factors import Factors
from lbm_lora.factorize.matrix import to_matrix


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
