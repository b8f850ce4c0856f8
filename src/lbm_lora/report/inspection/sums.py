"""Sums over the values of two deltas or tensors, from which their difference follows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lbm_lora.blocks import flat_blocks, squares
from lbm_lora.factorize import Factors
from lbm_lora.report.inspection.checkpoints import wide


@dataclass(frozen=True)
class Sums:
    """Sums over the values of one parameter, or several: of first^2, second^2, (first - second)^2, first * second."""

    first: float = 0.0
    second: float = 0.0
    between: float = 0.0
    product: float = 0.0
    largest: float = math.nan

    @property
    def relative(self) -> float:
        if not self.first:
            return self.between if not self.between or math.isnan(self.between) else math.inf
        return math.sqrt(self.between / self.first)

    @property
    def cosine(self) -> float:
        both = math.sqrt(self.first * self.second)
        if both:
            return max(-1.0, min(1.0, self.product / both)) if math.isfinite(both) else math.nan
        return 1.0 if self.first == self.second else 0.0


def total(parts: Iterable[Sums]) -> Sums:
    several = list(parts)
    return Sums(
        math.fsum(one.first for one in several),
        math.fsum(one.second for one in several),
        math.fsum(one.between for one in several),
        math.fsum(one.product for one in several),
    )


def alone(first: float, second: float) -> Sums:
    """The sums of a parameter whose counterpart counts as 0."""
    return Sums(first, second, first + second, 0.0)


def of_factors(first: Factors, second: Factors) -> Sums:
    """The sums of two products, never built: in fp64, the difference keeps 8 digits of the products' norms."""
    norms, product = (inner(first, first), inner(second, second)), inner(first, second)
    between = norms[0] + norms[1] - 2 * product
    return Sums(*norms, between if math.isnan(between) else max(0.0, between), product)


def inner(one: Factors, other: Factors) -> float:
    """The inner product of two products, from up^T up' and down down'^T, which are as small as the ranks."""
    ups = one.up.mT.double() @ other.up.double()
    found = (ups * (one.down.double() @ other.down.mT.double())).sum().item()
    return found if math.isfinite(found) else math.nan


def energy(tensor: Tensor | None) -> float:
    if tensor is None:
        return 0.0
    return math.fsum(squares(wide(block)) for (block,) in flat_blocks(tensor.contiguous()))


def of_tensors(one: Tensor, other: Tensor) -> Sums:
    """The sums of two tensors of equal shape, block by block in fp32."""
    first = second = between = product = largest = 0.0
    for left, right in flat_blocks(one.contiguous(), other.contiguous()):
        a, b = wide(left), wide(right)
        gap = a - b
        first += squares(a)
        second += squares(b)
        between += squares(gap)
        product += torch.dot(a.double(), b.double()).item()
        largest = max(largest, gap.abs().max().item()) if gap.numel() else largest
    return Sums(first, second, between, product, largest)
