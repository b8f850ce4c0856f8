"""Convert between a weight's shape and its matrix; no other module does.

A linear weight is (out, in); a conv weight (out, in, kh, kw) is read as (out, in*kh*kw). The factors of a conv
keep its kernel in `down` (rank, in, kh, kw); `up` is a 1x1 conv (out, rank, 1, 1).
"""

from jaxtyping import Float
from torch import Tensor

MATRIX_DIMS = (2, 4)
"""Numbers of dimensions with a matrix view; a delta with any other is dense."""


def has_matrix_view(shape: tuple[int, ...]) -> bool:
    """Return whether a weight of this shape is a linear or 2-D conv weight with at least one value."""
    return len(shape) in MATRIX_DIMS and 0 not in shape


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the matrix shape: (out, in) or (out, in, kh, kw) -> (out, in*kh*kw)."""
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


def to_matrix(weight: Tensor) -> Float[Tensor, "out columns"]:
    """View a weight as its matrix."""
    return weight.reshape(matrix_shape(tuple(weight.shape)))


def from_matrix(matrix: Float[Tensor, "out columns"], shape: tuple[int, ...]) -> Tensor:
    """Invert `to_matrix`."""
    return matrix.reshape(shape)


def rank_bound(shape: tuple[int, ...]) -> int:
    """Return the highest rank that a weight of this shape can have: min(out, in*kh*kw)."""
    return min(matrix_shape(shape))


def up_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the shape of `up` in a file for a weight of this shape."""
    return (shape[0], rank, *(1 for _ in shape[2:]))


def down_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the shape of `down` in a file for a weight of this shape."""
    return (rank, *shape[1:])
