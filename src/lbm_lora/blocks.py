"""Block-wise work on large tensors: blocks fit a core's cache, since memory traffic costs more than the arithmetic."""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_FLAT = 1 << 18  # values per flat block: 1 MB in fp32, half an L2 cache
_TILE = (512, 1280)
_FRACTION_BITS = {torch.bfloat16: 7, torch.float16: 10}
_FP32_EXPONENT = 0x7F800000
_ROW = 4096  # squares summed in fp32 at a time: longer sums lose digits on some processors
_SAFE = (1e-20, 1e30)  # fp32 sums of squares within these bounds have neither underflowed nor overflowed


class Workspace(threading.local):
    """One reusable fp32 buffer per thread: allocating memory costs more than filling it."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._buffer = torch.empty(0, device=device)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Return an uninitialized fp32 tensor of this shape, valid until this thread takes the next one."""
        count = math.prod(shape)
        if self._buffer.numel() < count:
            self._buffer = torch.empty(count, device=self._buffer.device)
        return self._buffer[:count].view(shape)


def flat_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of matching blocks of contiguous tensors of equal size."""
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), _FLAT):
        yield tuple(tensor[start : start + _FLAT] for tensor in flat)


def tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Yield the row and column slices of tiles that cover a matrix."""
    for top in range(0, rows, _TILE[0]):
        for left in range(0, columns, _TILE[1]):
            yield slice(top, min(top + _TILE[0], rows)), slice(left, min(left + _TILE[1], columns))


def squares(block: Tensor) -> float:
    """Return the sum of squares of a block of fp32 values, computed in fp64 if it leaves the range of fp32."""
    flat = block.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    rows, rest = flat[:whole].view(-1, 1, _ROW), flat[whole:]
    total = torch.bmm(rows, rows.mT).sum(dtype=torch.float64).item() + torch.dot(rest, rest).item()
    if _SAFE[0] < total < _SAFE[1] or not flat.numel():
        return total
    wide = flat.double()
    return torch.dot(wide, wide).item()


def absolutes(block: Tensor, scratch: Tensor | None = None) -> float:
    """Return the sum of absolute values of a block of fp32 values, computed in fp64 if it leaves the range of fp32.

    Args:
        scratch: a tensor of the block's shape that may be overwritten.
    """
    total = torch.abs(block, out=torch.empty_like(block) if scratch is None else scratch).sum().item()
    return total if math.isfinite(total) else block.double().abs_().sum().item()


@dataclass(frozen=True)
class DeltaSums:
    """Sums over the values of a delta.

    Attributes:
        noise: sum of ulp(tuned)^2 / 12; see `storage_noise`.
    """

    squares: float = 0.0
    absolutes: float = 0.0
    noise: float = 0.0


def subtract(tuned: Tensor, base: Tensor, out: Tensor) -> DeltaSums:
    """Compute out = tuned - base in fp32, and its sums, in one pass.

    Args:
        tuned, base: tensors of the same shape, of any floating-point or integer dtype.

    Returns:
        The sums; `squares` is not finite if a value of `out` is not.
    """
    total_squares = total_absolutes = noise = 0.0
    scratch = torch.empty(min(_FLAT, out.numel()))
    for block, after, before in flat_blocks(out, tuned.contiguous(), base.contiguous()):
        room = scratch[: block.numel()]
        block.copy_(after)
        noise += _block_noise(block, tuned.dtype, room)
        block.sub_(room.copy_(before))
        total_squares += squares(block)
        total_absolutes += absolutes(block, room)
    return DeltaSums(total_squares, total_absolutes, noise if total_absolutes else 0.0)


def storage_noise(tuned: Tensor) -> float:
    """Return the sum of ulp^2 / 12 over the values of a bf16 or fp16 tensor; 0 for wider dtypes.

    A value in [2^e, 2^(e+1)) has ulp 2^(e-7) in bf16 and 2^(e-10) in fp16. Zero and subnormals have the spacing of the
    smallest normal numbers, as in IEEE 754 (and `numpy.spacing`).
    """
    blocks = (block.float() for (block,) in flat_blocks(tuned.contiguous()))
    return sum(_block_noise(block, tuned.dtype, torch.empty_like(block)) for block in blocks)


def _block_noise(values: Tensor, dtype: torch.dtype, scratch: Tensor) -> float:
    """Return the `storage_noise` of fp32 values converted from `dtype`: clearing the mantissa leaves 2^e."""
    if dtype not in _FRACTION_BITS:
        return 0.0
    torch.bitwise_and(values.view(torch.int32), _FP32_EXPONENT, out=scratch.view(torch.int32))
    smallest = torch.finfo(dtype).tiny
    total = squares(scratch)
    if dtype == torch.float16 or total < _SAFE[0]:  # in bf16 the smallest numbers are negligible next to any others
        total = squares(scratch.clamp_(min=smallest))
    return total * 4.0 ** -_FRACTION_BITS[dtype] / 12


def is_finite(values: Tensor) -> bool:
    """Return whether a tensor of any dtype and size holds neither NaN nor infinite values, in one pass."""
    if not values.is_floating_point() or not values.numel():
        return True
    wide = values if values.dtype.itemsize > 1 else values.float()
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(wide))  # a NaN is both extremes


def energy(values: Tensor) -> float:
    """Return the sum of squares of a tensor of any size."""
    return sum(squares(block) for (block,) in flat_blocks(values.contiguous()))
