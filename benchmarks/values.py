"""The numbers of the pair, tensor by tensor: realistic weights, and deltas of a known make.

A matrix has normal values of variance 1 / fan-in. Its delta has 4 % of the matrix's norm: 70 % of the energy in
singular values that fall as k^-p, 30 % in white noise. p lies between 0.5 and 1 and differs from layer to layer. The
falling part has at most 256 columns, so that it can be made as a product of two thin factors; beyond them the noise
is all there is. Everything depends on the seed and the tensor's name alone.
"""

import math
from functools import lru_cache

import torch
import xxhash
from torch import Tensor

COLUMNS = 256
DELTA_SHARE = 0.04  # of the matrix's norm
NOISE_ENERGY = 0.3
POWERS = (0.5, 1.0)

FACTS = {
    "weights": "normal, variance 1 / fan-in; norms about 1, biases about 0",
    "delta": f"{DELTA_SHARE:.0%} of the weight's norm",
    "singular values": f"k^-p, p from {POWERS[0]} to {POWERS[1]} by layer, {COLUMNS} columns at most",
    "white noise": f"{NOISE_ENERGY:.0%} of the delta's energy",
    "rounding": "base, then base + delta, to bf16",
}


def power_of(name: str, seed: int) -> float:
    """The p of a layer's singular values."""
    low, high = POWERS
    return low + (high - low) * (_seed(name, seed, "power") % 1001) / 1000


def weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The fp32 tensor of that name."""
    if not shape:
        return torch.zeros(())
    noise = _normal(name, shape, seed, "weight")
    if len(shape) == 1:
        return noise.mul_(0.05).add_(1) if name.endswith(".weight") else noise.mul_(0.02)
    return noise.mul_(_spread(shape))


def delta(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The fp32 delta of that name."""
    noise = _normal(name, shape, seed, "delta")
    if len(shape) < 2:
        return noise.mul_(0.002)
    size = DELTA_SHARE * _spread(shape)
    matrix = noise.reshape(shape[0], -1)
    rows, columns = matrix.shape
    count = min(COLUMNS, rows, columns)
    values = torch.arange(1, count + 1, dtype=torch.float32) ** -power_of(name, seed)
    values *= size * math.sqrt((1 - NOISE_ENERGY) * matrix.numel()) / values.norm()
    left = _orthonormal(name, rows, count, seed, "left") * values
    right = _orthonormal(name, columns, count, seed, "right")
    torch.addmm(matrix, left, right.mT, beta=size * math.sqrt(NOISE_ENERGY), out=matrix)
    return matrix.reshape(shape)


def _spread(shape: tuple[int, ...]) -> float:
    return 1 / math.sqrt(math.prod(shape[1:]))


def _orthonormal(name: str, rows: int, columns: int, seed: int, what: str) -> Tensor:
    """Orthonormal columns of this name alone: permuting rows and turning signs keeps columns orthonormal."""
    generator = torch.Generator().manual_seed(_seed(name, seed, what))
    order = torch.randperm(rows, generator=generator)
    signs = torch.randint(0, 2, (rows, 1), generator=generator) * 2.0 - 1
    return _basis(rows, seed)[order, :columns] * signs


@lru_cache(maxsize=64)
def _basis(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(_seed("basis", seed, str(rows)))
    return torch.linalg.qr(torch.randn(rows, min(rows, COLUMNS), generator=generator)).Q


def _normal(name: str, shape: tuple[int, ...], seed: int, what: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(_seed(name, seed, what)))


def _seed(name: str, seed: int, what: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed} {what} {name}".encode()) >> 1
