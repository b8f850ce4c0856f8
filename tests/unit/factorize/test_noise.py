"""The edge above which a singular value is more than rounding, on pairs that really are rounded."""

import math

import pytest
import torch
from torch import Tensor

from lbm_lora.factorize import noise_edge, rank_above, rounding_edge
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_the_edge_is_where_rounding_ends(dtype: torch.dtype, seed: int) -> None:
    tuned, delta, signal = pair(dtype, 1e-3, seed=seed)
    noise = torch.linalg.svdvals(delta - signal)
    std = float((delta - signal).std())
    assert noise_edge(SHAPE, std) == pytest.approx(float(noise[0]), rel=0.05)
    assert 0.75 * rounding_edge(tuned) < float(noise[0]) < rounding_edge(tuned)


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


def test_larger_rows_are_noisier_than_the_mean() -> None:
    """With the mean over all elements for an edge, ranks of noise would pass for signal."""
    tuned, delta, signal = pair(torch.bfloat16, 3e-3, spread=1)
    mean = noise_edge(SHAPE, float((delta - signal).square().mean().sqrt()))
    values = torch.linalg.svdvals(delta)
    assert rank_above(values, mean) > SIGNALS + 3
    assert rank_above(values, rounding_edge(tuned)) <= SIGNALS


def test_one_standard_deviation_gives_the_edge_of_marchenko_and_pastur() -> None:
    """Values in [1, 2) have the ulp 2^-7 in bf16."""
    generator = torch.Generator().manual_seed(0)
    values = (1 + torch.rand(300, 70, generator=generator) * 0.99).bfloat16()
    assert rounding_edge(values) == pytest.approx(noise_edge((300, 70), 2.0**-7 / math.sqrt(12)), rel=1e-12)
    assert rounding_edge(-values.half()) == pytest.approx(rounding_edge(values) / 8, rel=1e-12)


def test_powers_of_two_zero_and_subnormals() -> None:
    """A power of two has the ulp of the values above it, zero and subnormals that of the smallest normal number."""
    one = rounding_edge(torch.ones(1, 1, dtype=torch.float16))
    assert one == pytest.approx(2 * 2.0**-10 / math.sqrt(12))
    for value in (0.0, 2.0**-20, 2.0**-14):
        assert rounding_edge(torch.full((1, 1), value, dtype=torch.float16)) == pytest.approx(one * 2.0**-14)


def test_wide_dtypes_have_no_noise() -> None:
    assert rounding_edge(torch.ones(3, 3)) == 0
    assert rounding_edge(torch.ones(3, 3, dtype=torch.float64)) == 0
    assert rounding_edge(torch.ones(0, 3, dtype=torch.bfloat16)) == 0
