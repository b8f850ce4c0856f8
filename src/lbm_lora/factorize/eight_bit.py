"""Factors in 8 bits: integers from -127 to 127, and one scale (unit) per rank.

    up @ down = (up8 * unit) @ down8

The largest value in each row of `down` and each column of `up` becomes 127; the others are rounded to multiples of a
127th of it. Since a scale can move from one factor to the other, one unit per rank serves both. Units have 16
significant bits, so that every value is exact in fp32 and rounding is idempotent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from lbm_lora.errors import InputError

LARGEST = 127
_DROPPED = 8  # of the 24 significant bits of fp32
_MANTISSA, _BIAS = 23, 127  # bits of fp32's fraction, and the offset of its exponent


@dataclass(frozen=True)
class EightBit:
    """Factors as a file stores them.

    Attributes:
        up: (out, rank).
        down: (rank, columns).
        unit: (rank,), fp32, positive.
    """

    up: Int8[Tensor, "out rank"]
    down: Int8[Tensor, "rank columns"]
    unit: Float32[Tensor, " rank"]

    def factors(self) -> tuple[Float32[Tensor, "out rank"], Float32[Tensor, "rank columns"]]:
        """Return (up, down), exact, with each unit split about evenly between them.

        `down` gets a power of two: that costs no precision, and neither factor leaves the range of fp16.
        """
        share = power_of_two(torch.frexp(self.unit).exponent // 2)
        return self.up.float() * (self.unit / share), self.down.float() * share[:, None]


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


def power_of_two(exponents: Tensor) -> Float32[Tensor, " k"]:
    """Return 2^exponent, built from its bits: exact, as `pow` need not be."""
    return ((exponents + _BIAS) << _MANTISSA).to(torch.int32).view(torch.float32)
