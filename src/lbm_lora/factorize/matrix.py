"""Shapes and ranks of a weight's matrix; no other module knows them.

A linear weight is (out, in); a conv weight (out, in, kh, kw) is read as (out, in*kh*kw). The factors of a conv
keep its kernel in `down` (rank, in, kh, kw); `up` is a 1x1 conv (out, rank, 1, 1).
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

FULL_RANK = 9999
"""The documented value for "as high as the matrix allows"."""


def has_matrix_view(shape: tuple[int, ...]) -> bool:
    """Return whether a weight of this shape is a linear or 2-D conv weight with at least one value."""
    return len(shape) in (2, 4) and 0 not in shape


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the matrix shape: (out, in) or (out, in, kh, kw) -> (out, in*kh*kw)."""
    return shape[0], math.prod(shape[1:])


def to_matrix(weight: Tensor) -> Float[Tensor, "out columns"]:
    """View a weight as its matrix."""
    return weight.reshape(matrix_shape(tuple(weight.shape)))


def rank_bound(shape: tuple[int, ...]) -> int:
    """Return the highest rank that a weight of this shape can have: min(out, in*kh*kw)."""
    return min(matrix_shape(shape))


def up_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the shape of `up` in a file for a weight of this shape."""
    return (shape[0], rank, *(1 for _ in shape[2:]))


def down_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the shape of `down` in a file for a weight of this shape."""
    return (rank, *shape[1:])


@dataclass(frozen=True, kw_only=True)
class FixedRank:
    """One rank for linear weights and one for convs, each capped at the matrix's bound."""

    linear: int = 32
    conv: int = 16

    @classmethod
    def of(cls, linear: int, conv: int | None = None) -> "FixedRank":
        """A rank, and the conv rank that goes with it where none is given: half of it, rounded up; full stays full."""
        half = linear if linear >= FULL_RANK else (linear + 1) // 2
        return cls(linear=linear, conv=half if conv is None else conv)

    def rank_of(self, shape: tuple[int, ...]) -> int:
        """Return the stored rank for a weight of this shape."""
        return min(self.conv if len(shape) == 4 else self.linear, rank_bound(shape))
