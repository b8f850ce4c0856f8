"""Solve a damped linear least squares problem by conjugate gradients, given only products with its matrix.

CGLS (Hestenes and Stiefel, 1952; Björck, "Numerical Methods for Least Squares Problems", 1996, section 7.4): the
matrix J is used only in J v and J^T u, and J^T J is never formed.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Vector = Float[Tensor, " columns"]
Rows = Float[Tensor, " rows"]

_DONE = 1e-14  # squared gradient, relative to the first, below which nothing is left to solve in fp32


@runtime_checkable
class Jacobian(Protocol):
    """A matrix that is known by its products."""

    def times(self, vector: Vector) -> Rows:
        """Return J v."""
        ...

    def transposed(self, rows: Rows) -> Vector:
        """Return J^T u."""
        ...


@dataclass(frozen=True)
class Solution:
    """A change of the values, and the squared residual that is left after it if J is exact."""

    change: Vector
    left: float


def solve(jacobian: Jacobian, residual: Rows, scales: Vector, *, damping: float, iterations: int) -> Solution:
    """Minimise ||residual - J change||^2 + damping * ||change / scales||^2 in a few iterations.

    Few iterations damp too: directions in which J is small come last.

    Args:
        scales: positive; size of a typical change of each value, which preconditions the problem.
        damping: 0 or more.
    """
    moved = torch.zeros_like(scales)
    gradient = scales * jacobian.transposed(residual)
    direction, squared = gradient, _squared(gradient)
    first = squared
    for _ in range(iterations):
        if squared <= _DONE * first:
            break
        product = jacobian.times(scales * direction)
        length = squared / (_squared(product) + damping * _squared(direction))
        moved = moved + length * direction
        residual = residual - length * product
        gradient = scales * jacobian.transposed(residual) - damping * moved
        before, squared = squared, _squared(gradient)
        direction = gradient + (squared / before) * direction
    return Solution(scales * moved, _squared(residual))


def _squared(vector: Tensor) -> float:
    return float(vector.double().square().sum())
