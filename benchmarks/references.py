"""What our commands are compared with: the bare pass over the bytes, a copy, and the earlier implementation's SVD."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import memory
from lbm_lora.checkpoint import Checkpoint, open_checkpoint
from lbm_lora.factorize import to_matrix

Work = Callable[[], dict[str, Any]]

_BLOCK = 1 << 18  # values: two fp32 blocks stay in a core's second-level cache
_ROOM = 0.8  # share of the available memory that an SVD with full matrices may take


def bare_pass(*, base: str, tuned: str, threads: int, blocked: bool) -> Work:
    """Read both files through memory maps, subtract in fp32, add up the squares.

    Args:
        threads: each works on tensors, or blocks, of its own.
        blocked: blocks that fit the cache, in buffers that are used again; else whole tensors.
    """
    torch.set_num_threads(1)

    def work() -> dict[str, Any]:
        with open_checkpoint(base) as first, open_checkpoint(tuned) as second, ThreadPoolExecutor(threads) as pool:
            if blocked:
                blocks = list(_blocks(first, second))
                parts = pool.map(_squares_of_blocks, [blocks[start::threads] for start in range(threads)])
            else:
                parts = pool.map(lambda name: _squares(first.read(name), second.read(name)), list(first.specs))
            return {"sum_of_squares": sum(parts)}

    return work


def _squares(before: Tensor, after: Tensor) -> float:
    change = after.float() - before.float()
    return float(torch.linalg.vector_norm(change)) ** 2


def _blocks(first: Checkpoint, second: Checkpoint) -> Iterator[tuple[Tensor, Tensor]]:
    for name in first.specs:
        before, after = first.read(name).reshape(-1), second.read(name).reshape(-1)
        yield from zip(before.split(_BLOCK), after.split(_BLOCK), strict=True)


def _squares_of_blocks(blocks: list[tuple[Tensor, Tensor]]) -> float:
    one, other = torch.empty(_BLOCK), torch.empty(_BLOCK)
    total = 0.0
    for before, after in blocks:
        low, high = one[: len(before)].copy_(before), other[: len(after)].copy_(after)
        high.sub_(low)
        total += float(torch.dot(high, high))
    return total


def copy(*, source: str, targets: list[str]) -> Work:
    """Copy a file by the system's own means, once for each target, each synced to the disk as our outputs are."""

    def work() -> dict[str, Any]:
        for target in targets:
            shutil.copyfile(source, target)
            descriptor = os.open(target, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        return {}

    return work


def svd(*, base: str, tuned: str, name: str, full: bool) -> Work:
    """One layer's SVD, with full matrices as the earlier implementation has it where the memory allows, else thin."""
    with open_checkpoint(base) as first, open_checkpoint(tuned) as second:
        matrix = to_matrix(second.read(name).float() - first.read(name).float())
    full = full and full_svd_bytes(*matrix.shape) < _ROOM * memory()["MemAvailable"]
    torch.linalg.svd(torch.eye(64) + 0.1)  # LAPACK is loaded on its first call

    def work() -> dict[str, Any]:
        start = time.perf_counter()
        torch.linalg.svd(matrix, full_matrices=full)
        return {"seconds": time.perf_counter() - start, "full": full, "shape": list(matrix.shape)}

    return work


def full_svd_bytes(rows: int, columns: int) -> int:
    """About what an fp32 SVD with full matrices takes: the large square factor twice, the matrix four times."""
    return 4 * (2 * max(rows, columns) ** 2 + 4 * rows * columns)


def limits(*, folder: str) -> Work:
    """What the machine can do: products, memory, the disk."""

    def work() -> dict[str, Any]:
        square, thin = torch.randn(2048, 2048), torch.randn(2048, 40)
        tall = torch.randn(10240, 1280)
        large = torch.ones(1 << 28, dtype=torch.uint8)
        other = torch.empty_like(large)
        half = square.bfloat16()
        thin_tall = torch.randn(1280, 40)
        half_tall, half_thin = tall.bfloat16(), thin_tall.bfloat16()
        file = Path(folder) / "limit.bin"

        def write() -> None:
            with file.open("wb") as output:
                output.write(large.numpy().data)
                output.flush()
                os.fsync(output.fileno())

        try:
            return {
                "fp32 product, GFLOP/s": 2 * 2048**3 / _best(lambda: square @ square) / 1e9,
                "fp32 product with 40 columns, GFLOP/s": 2 * tall.numel() * 40 / _best(lambda: tall @ thin_tall) / 1e9,
                "bf16 product, GFLOP/s": 2 * 2048**3 / _best(lambda: half @ half) / 1e9,
                "bf16 product with 40 columns, GFLOP/s": 2
                * tall.numel()
                * 40
                / _best(lambda: half_tall @ half_thin)
                / 1e9,
                "memory copy (read + write), GB/s": 2 * large.numel() / _best(lambda: other.copy_(large)) / 1e9,
                "QR of 2048 x 40, ms": 1e3 * _best(lambda: torch.linalg.qr(thin)),
                "write and sync to the disk, GB/s": large.numel() / _best(write, times=2) / 1e9,
                "read from the page cache, GB/s": large.numel() / _best(lambda: _read(file)) / 1e9,
            }
        finally:
            file.unlink(missing_ok=True)

    return work


def _read(path: Path) -> None:
    buffer = bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _best(work: Callable[[], object], *, times: int = 5) -> float:
    """The shortest of several runs, after one that does not count, in seconds."""
    work()
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
