"""The edge above which a singular value is more than rounding, on pairs that really are rounded."""

import math

import pytest
import torch
from torch import Tensor

from lbm_lora.factorize import rank_above, rounding_edge
from spectra import matrix_with

SHAPE = (160, 240)
SIGNALS = 6


def pair(dtype: torch.dtype, size: float, *, spread: float = 0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(tuned, delta, true delta) of weights of about 0.05: the true delta has rank 6 and elements of about `size`.

    `spread`: of the scales of rows and columns, as the standard deviation of a log-normal.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = 0.05 * torch.randn(SHAPE, generator=generator)
    for shape in ((SHAPE[0], 1), (1, SHAPE[1])):
        weights *= (spread * torch.randn(shape, generator=generator)).exp()
    base = weights.to(dtype)
    signal = matrix_with(*SHAPE, lambda i: (i <= SIGNALS).double() * (SIGNALS + 1 - i).clamp(min=1), seed + 1)
    signal *= size * math.sqrt(signal.numel()) / float(signal.norm())
    tuned = (base.float() + signal).to(dtype)
    return tuned, tuned.float() - base.float(), signal


@pytest.mark.parametrize("spread", [0, 0.5])
@pytest.mark.parametrize("size", [3e-3, 1e-3, 4e-4])
def test_ranks_above_it_are_those_of_the_true_delta(size: float, spread: float) -> None:
    """At 4e-4 rounding makes up a third of the delta, as in real pairs."""
    tuned, delta, signal = pair(torch.bfloat16, size, spread=spread)
    edge, values = rounding_edge(tuned), torch.linalg.svdvals(delta)
    true = rank_above(torch.linalg.svdvals(signal), edge)
    assert true >= (SIGNALS if spread == 0 else 4)
    assert rank_above(values, edge) == true
    assert rank_above(values, 0) == min(SHAPE)


def test_one_standard_deviation_gives_the_edge_of_marchenko_and_pastur() -> None:
    """Values in [1, 2) have the ulp 2^-7 in bf16."""
    generator = torch.Generator().manual_seed(0)
    values = (1 + torch.rand(300, 70, generator=generator) * 0.99).bfloat16()
    assert rounding_edge(values) == pytest.approx(2.0**-7 / math.sqrt(12) * (math.sqrt(300) + math.sqrt(70)), rel=1e-12)
    assert rounding_edge(-values.half()) == pytest.approx(rounding_edge(values) / 8, rel=1e-12)


def test_wide_dtypes_have_no_noise() -> None:
    assert rounding_edge(torch.ones(3, 3)) == 0
    assert rounding_edge(torch.ones(3, 3, dtype=torch.float64)) == 0
    assert rounding_edge(torch.ones(0, 3, dtype=torch.bfloat16)) == 0
