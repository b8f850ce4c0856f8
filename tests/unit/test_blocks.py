"""Passes over big tensors in blocks."""

import math
import threading

import numpy as np
import pytest
import torch

from lbm_lora.blocks import Workspace, absolutes, energy, squares, storage_noise, subtract


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [0, 1, 1000, 300_001])
def test_a_difference_and_its_sums(count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    tuned, base = (torch.randn(count, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(count)
    sums = subtract(tuned, base, out)
    exact = tuned.double().numpy() - base.double().numpy()
    np.testing.assert_allclose(out.numpy(), exact, rtol=1e-6, atol=1e-7)
    assert sums.squares == pytest.approx(float((exact**2).sum()), rel=1e-5)
    assert sums.absolutes == pytest.approx(float(np.abs(exact).sum()), rel=1e-5)
    assert sums.noise == pytest.approx(storage_noise(tuned), rel=1e-6)
    assert (sums.noise > 0) == (dtype != torch.float32 and count > 0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_shows_in_the_squares(bad: float) -> None:
    tuned = torch.ones(200_000)
    tuned[150_000] = bad
    assert not math.isfinite(subtract(tuned, torch.zeros(200_000), torch.empty(200_000)).squares)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-12, 1.0, 1e12, 1e20, 1e30])
def test_no_scale_leaves_the_range(scale: float) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * scale
    exact = values.double()
    assert squares(values) == energy(values) == pytest.approx(float(exact.square().sum()), rel=1e-5)
    assert absolutes(values) == pytest.approx(float(exact.abs().sum()), rel=1e-5)
    assert absolutes(torch.full((1000,), 3e38)) == pytest.approx(3e41, rel=1e-5)


def test_a_workspace_is_used_again_by_its_thread_and_by_no_other() -> None:
    workspace = Workspace()
    first = workspace.take((4, 5))
    assert workspace.take((20,)).data_ptr() == first.data_ptr()
    assert workspace.take((30,)).shape == (30,)
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(workspace.take((20,)).data_ptr()))
    thread.start()
    thread.join()
    assert other[0] != workspace.take((20,)).data_ptr()
