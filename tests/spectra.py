"""Matrices with known singular values for the tests, and the optimum of a rank in fp64."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Spectrum = Callable[[Tensor], Tensor]

SPECTRA: Mapping[str, Spectrum] = {
    "flat": torch.ones_like,
    "power 0.2": lambda i: i**-0.2,
    "power 0.5": lambda i: i**-0.5,
    "power 1": lambda i: 1 / i,
    "power 2": lambda i: i**-2,
    "exponential": lambda i: torch.exp(-i / 5),
    "rank 8": lambda i: (i <= 8).double(),
    "the rank itself": lambda i: (i <= 24).double(),
    "one more than the rank": lambda i: (i <= 25).double(),
    "rank 8 and noise": lambda i: (i <= 8) + torch.full_like(i, 1e-4),
    "step at the rank": lambda i: torch.where(i <= 24, 1.0, 0.9),
    "clusters": lambda i: torch.where(i <= 16, 1.0, torch.where(i <= 48, 0.999, 1e-3)),
    "a cluster across the rank": lambda i: torch.where(i <= 48, 1.0, 1e-3),
    "a faint tail": lambda i: torch.where(i <= 4, 1.0, 3e-5),
}

WORST = ("power 0.2", "a cluster across the rank", "rank 8 and noise", "a faint tail")
"""Those at which a method would fail first: hardly any decay, equal values at the rank, errors near fp32's rounding."""


def matrix_with(rows: int, columns: int, spectrum: Spectrum, seed: int = 0) -> Tensor:
    """A random fp32 matrix whose singular values are spectrum(1), spectrum(2), ..."""
    generator = torch.Generator().manual_seed(seed)
    short = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(size, short, generator=generator, dtype=torch.float64)).Q
        for size in (rows, columns)
    )
    values = spectrum(torch.arange(1, short + 1, dtype=torch.float64))
    return ((left * values) @ right.mT).float()


def error_of(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    """||matrix - left @ right||_F in fp64."""
    return float((matrix.double() - left.double() @ right.double()).norm())


def bound_of(matrix: Tensor, rank: int) -> float:
    """What counts as optimal: 1.001 * the optimum + 1e-5 * the norm."""
    values = torch.linalg.svdvals(matrix.double())
    return 1.001 * float(values[rank:].norm()) + 1e-5 * float(values.norm())
