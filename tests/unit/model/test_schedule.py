"""Which timesteps were trained, and which numbers of steps stay on them."""

import pytest
import torch

from lbm_lora.errors import ConfigError
from lbm_lora.model import bridge
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.schedule import (
    check_steps,
    schedule_of,
    trained_step_counts,
)
from lbm_lora.progress import LbmLoraWarning

TRAINED = LBMConfig(selected_timesteps=(250, 500, 750, 1000), prob=(0.1, 0.2, 0.3, 0.4))


def test_a_model_of_all_timesteps() -> None:
    config = LBMConfig(timestep_sampling="uniform", selected_timesteps=None, prob=None)
    assert schedule_of(config) == ((250, 0.25), (500, 0.25), (750, 0.25), (1000, 0.25))
    assert schedule_of(config, (900, 30)) == ((900, 0.5), (30, 0.5))
    with pytest.raises(ConfigError, match=r"^timesteps must be above 0 and at most 1000, got 1001\.$"):
        schedule_of(config, (900, 1001))


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        ((250, 500, 750, 1000), (1, 2, 4)),
        ((1000,), (1,)),
        ((500, 1000), (1, 2)),
        ((250.0, 500.0, 1000.0), (1, 2)),
        ((250, 500, 750), ()),
        ((), ()),
    ],
)
def test_trained_step_counts(selected: tuple[float, ...], expected: tuple[int, ...]) -> None:
    assert trained_step_counts(selected) == expected


def test_steps_off_the_trained_timesteps_are_said() -> None:
    with pytest.warns(
        LbmLoraWarning,
        match=r"^3 steps call the denoiser at untrained timesteps\. Trained numbers of steps: 1, 2, 4\.$",
    ):
        check_steps(TRAINED, 3)
    check_steps(TRAINED, 4)
    check_steps(LBMConfig(timestep_sampling="uniform"), 7)
    with pytest.raises(ConfigError, match=r"^steps must be 1 or more, got 0"):
        check_steps(TRAINED, 0)


def latents(*values: float) -> torch.Tensor:
    """One sample per value, of shape [n, 1, 1, 1]."""
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_interpolate_by_hand() -> None:
    # 0.25 * 4 + 0.75 * 8 + 0.1 * sqrt(0.25 * 0.75) * 2 = 7 + 0.2 * 0.4330127
    point = bridge.interpolate(latents(4.0), latents(8.0), 0.25, latents(2.0), 0.1)
    assert point.item() == pytest.approx(7.08660254, abs=1e-6)


def test_velocity_and_predict_target_are_inverse_without_noise() -> None:
    source, target = torch.randn(2, 3, 4, 2, 2, generator=seeded(1))
    sigma = torch.tensor([1.0, 0.5, 0.25])
    noisy = bridge.interpolate(source, target, sigma, torch.zeros_like(source), 0.005)
    found = bridge.predict_target(noisy, sigma, bridge.velocity(source, target))
    torch.testing.assert_close(found, target)
