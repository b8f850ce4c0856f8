"""Errors of an approximation, and the noise that 16 bits of storage add to a delta."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.blocks import DeltaSums, absolutes, energy, storage_noise
from lbm_lora.factorize import Factors, Measure, measure_delta, rank_above, rounding_edge, with_error
from spectra import matrix_with

FP32 = 1e-5
"""Relative: the sum of a block is fp32, that of the blocks fp64."""


def measure(delta: Tensor, approximation: Tensor | Factors | None, tuned: Tensor) -> Measure:
    """What extraction and validation do in two steps."""
    sums = DeltaSums(energy(delta), absolutes(delta), storage_noise(tuned) if delta.any() else 0.0)
    return with_error(measure_delta(delta.numel(), sums), delta, approximation)


@given(st.integers(0, 50), st.integers(0, 3), st.sampled_from([1e-20, 1e-6, 1.0, 1e15]))
def test_sums_are_those_of_numpy(count: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta, approximation = (torch.randn(count, 3, generator=generator) * scale for _ in range(2))
    found = measure(delta, approximation, torch.zeros(count, 3))
    exact, error = delta.double().numpy(), (delta - approximation).double().numpy()
    assert found.numel == exact.size
    assert found.delta_sq == pytest.approx(float((exact**2).sum()), rel=FP32)
    assert found.error_sq == pytest.approx(float((error**2).sum()), rel=FP32)
    assert found.delta_abs == pytest.approx(float(np.abs(exact).sum()), rel=FP32)
    assert found.error_abs == pytest.approx(float(np.abs(error).sum()), rel=FP32)
    if count:
        assert found.relative_error == pytest.approx(float(np.linalg.norm(error) / np.linalg.norm(exact)), rel=FP32)
        assert found.mean_error == pytest.approx(float(np.abs(error).mean()), rel=FP32)
        assert found.relative_mean_error == pytest.approx(float(np.abs(error).mean() / np.abs(exact).mean()), rel=FP32)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (4, 2, 3, 3)])
def test_the_error_of_full_rank_factors_is_that_of_the_matrix(shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stored = (delta + 0.01).flatten(1)
    rows, columns = stored.shape
    factors = Factors(torch.eye(rows), stored) if rows <= columns else Factors(stored, torch.eye(columns))
    found = measure(delta, factors, torch.zeros(shape))
    assert found == measure(delta, stored.reshape(shape), torch.zeros(shape))
    assert found.error_sq == pytest.approx(1e-4 * delta.numel(), rel=1e-3)


def test_measures_add_up_as_one_long_delta() -> None:
    generator = torch.Generator().manual_seed(0)
    delta, approximation = torch.randn(2, 30, generator=generator)
    tuned = torch.randn(30, generator=generator).bfloat16()
    parts = [slice(0, 7), slice(7, 7), slice(7, 30)]
    joint = sum((measure(delta[p], approximation[p], tuned[p]) for p in parts), start=Measure())
    whole = measure(delta, approximation, tuned)
    for name in ("numel", "delta_sq", "error_sq", "delta_abs", "error_abs", "noise_sq"):
        assert getattr(joint, name) == pytest.approx(getattr(whole, name), rel=FP32)


def ulp(values: np.ndarray, digits: int, smallest: int) -> np.ndarray:
    """Spacing of a format with `digits` fraction bits and normal numbers from 2**smallest, from the values alone."""
    exponent = np.frexp(np.abs(values))[1] - 1
    exponent = np.where(values == 0, smallest, np.maximum(exponent, smallest))
    return np.ldexp(1.0, exponent - digits)


FORMATS = [(torch.bfloat16, 7, -126), (torch.float16, 10, -14)]


@pytest.mark.parametrize(("dtype", "digits", "smallest"), FORMATS)
def test_the_noise_of_every_finite_number(dtype: torch.dtype, digits: int, smallest: int) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[torch.isfinite(every)]
    assert len(every) in (65280, 63488)
    for group in every.reshape(-1, 1 << digits):  # one binade after the other: large values would hide small ones
        expected = float((ulp(group.double().numpy(), digits, smallest) ** 2).sum() / 12)
        assert storage_noise(group) == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_noise_is_what_rounding_does(dtype: torch.dtype) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 0.02
    real = float((values.to(dtype).double() - values.double()).square().sum())
    assert storage_noise(values.to(dtype)) == pytest.approx(real, rel=0.02)


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
