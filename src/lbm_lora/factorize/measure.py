"""How far an approximation is from a delta, in sums that add up over parameters."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Sums over the values of one delta, or of several.

    Attributes:
        numel: number of values.
        delta_sq: sum of delta^2.
        error_sq: sum of (delta - approximation)^2.
        delta_abs: sum of |delta|.
        error_abs: sum of |delta - approximation|.
        noise_sq: sum of ulp(tuned)^2 / 12, the variance that rounding tuned to its bf16 or fp16 storage adds; 0 where
            the delta is zero, since a parameter that was not trained keeps the base's rounding.
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
        """||delta - approximation||_F / ||delta||_F; 0 where both are zero, inf where only the delta is."""
        return _ratio(math.sqrt(self.error_sq), math.sqrt(self.delta_sq))

    @property
    def mean_error(self) -> float:
        """mean |delta - approximation|."""
        return self.error_abs / self.numel if self.numel else 0.0

    @property
    def relative_mean_error(self) -> float:
        """mean |delta - approximation| / mean |delta|, the documented measure."""
        return _ratio(self.error_abs, self.delta_abs)

    @property
    def noise_floor(self) -> float:
        """The part of the delta's norm that storage rounding of tuned makes up; no method can tell it apart."""
        return _ratio(math.sqrt(self.noise_sq), math.sqrt(self.delta_sq))


def measure(delta: Tensor, approximation: Tensor | None, tuned: Tensor) -> Measure:
    """Compare a delta with what a file says of it.

    Args:
        delta: fp32.
        approximation: fp32, same shape; None where the file has nothing, which means zero.
        tuned: the tuned parameter in its storage dtype.
    """
    error = delta if approximation is None else delta - approximation
    delta_sq = _sum_of_squares(delta)
    return Measure(
        numel=delta.numel(),
        delta_sq=delta_sq,
        error_sq=_sum_of_squares(error),
        delta_abs=delta.abs().sum(dtype=torch.float64).item(),
        error_abs=error.abs().sum(dtype=torch.float64).item(),
        noise_sq=storage_noise(tuned) if delta_sq else 0.0,
    )


def storage_noise(tuned: Tensor) -> float:
    """Sum of ulp^2 / 12 over the values of a bf16 or fp16 tensor; 0 for wider dtypes.

    A value in [2^e, 2^(e+1)) has ulp 2^(e-7) in bf16 and 2^(e-10) in fp16. Clearing the mantissa leaves 2^e. Zero
    and subnormals have the spacing of the smallest normal numbers, as IEEE 754 (and `numpy.spacing`) have it.
    """
    if tuned.dtype == torch.bfloat16:
        exponent_bits, digits = 0x7F80, 7
    elif tuned.dtype == torch.float16:
        exponent_bits, digits = 0x7C00, 10
    else:
        return 0.0
    powers = (tuned.contiguous().view(torch.int16) & exponent_bits).view(tuned.dtype)
    powers = powers.float().clamp(min=torch.finfo(tuned.dtype).tiny)
    return _sum_of_squares(powers) * 4.0**-digits / 12


def _sum_of_squares(values: Tensor) -> float:
    return torch.linalg.vector_norm(values, dtype=torch.float64).item() ** 2


def _ratio(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else math.inf
