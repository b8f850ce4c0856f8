"""Points of the bridge against numbers computed by hand."""

import pytest
import torch

from lbm_lora.model import bridge


def latents(*values: float) -> torch.Tensor:
    """One sample per value, of shape [n, 1, 1, 1]."""
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_interpolate_by_hand() -> None:
    # 0.25 * 4 + 0.75 * 8 + 0.1 * sqrt(0.25 * 0.75) * 2 = 7 + 0.2 * 0.4330127
    point = bridge.interpolate(latents(4.0), latents(8.0), 0.25, latents(2.0), 0.1)
    assert point.item() == pytest.approx(7.08660254, abs=1e-6)


def test_interpolate_takes_a_sigma_per_sample() -> None:
    point = bridge.interpolate(latents(4.0, 4.0), latents(8.0, 8.0), torch.tensor([1.0, 0.0]), latents(9.0, 9.0), 0.5)
    assert point.flatten().tolist() == [4.0, 8.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_interpolate_at_sigma_one_is_the_source_bit_for_bit(dtype: torch.dtype) -> None:
    source, target, noise = torch.randn(3, 2, 4, 3, 3, generator=seeded(0)).to(dtype)
    assert torch.equal(bridge.interpolate(source, target, 1.0, noise, 0.005), source)


def test_velocity_and_predict_target_are_inverse_without_noise() -> None:
    source, target = torch.randn(2, 3, 4, 2, 2, generator=seeded(1))
    sigma = torch.tensor([1.0, 0.5, 0.25])
    noisy = bridge.interpolate(source, target, sigma, torch.zeros_like(source), 0.005)
    found = bridge.predict_target(noisy, sigma, bridge.velocity(source, target))
    torch.testing.assert_close(found, target)
