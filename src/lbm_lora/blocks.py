"""Big tensors in pieces that stay in a core's cache: a pass over memory costs more than the arithmetic on it."""

from collections.abc import Iterator

import torch
from torch import Tensor

_FLAT = 1 << 16  # values of a flat block: fp32 blocks of delta and tuned fit a cache of 1 MB
_TILE = (256, 1024)


def flat_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of equal parts of tensors of equal size, one after the other. The tensors are contiguous."""
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), _FLAT):
        yield tuple(tensor[start : start + _FLAT] for tensor in flat)


def tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Slices that cover a matrix in tiles."""
    for top in range(0, rows, _TILE[0]):
        for left in range(0, columns, _TILE[1]):
            yield slice(top, min(top + _TILE[0], rows)), slice(left, min(left + _TILE[1], columns))


def sums(block: Tensor) -> tuple[float, float]:
    """(sum of squares, sum of absolute values) in fp64, whose range no square of an fp32 value leaves."""
    wide = block.reshape(-1).double()
    squares = torch.dot(wide, wide).item()
    return squares, wide.abs_().sum().item()
