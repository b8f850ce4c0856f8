"""The bridge against numbers computed by hand and against diffusers' own Euler scheduler."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from lbm_lora.model import bridge


def latents(*values: float) -> torch.Tensor:
    """One sample per value, of shape [n, 1, 1, 1]."""
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def flow_match_scheduler(steps: int) -> Any:
    """diffusers' scheduler, driven as LBM drives it."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    return scheduler


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [1000.0]),
        (2, [1000.0, 500.0]),
        (3, [1000.0, 666.66669, 333.33334]),
        (4, [1000.0, 750.0, 500.0, 250.0]),
    ],
)
def test_timesteps_are_evenly_spaced_from_1000(steps: int, expected: list[float]) -> None:
    assert torch.equal(bridge.timesteps(steps), torch.tensor(expected))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20])
def test_schedule_equals_the_flow_match_scheduler(steps: int) -> None:
    scheduler = flow_match_scheduler(steps)
    assert torch.equal(bridge.sigmas(steps), scheduler.sigmas[:-1])
    assert torch.equal(bridge.timesteps(steps), scheduler.timesteps)


@pytest.mark.parametrize("steps", [0, -1])
def test_less_than_one_step_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps must be at least 1, not {steps}"):
        bridge.sigmas(steps)


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


def test_one_step_with_the_true_velocity_reaches_the_target() -> None:
    source, target = torch.randn(2, 1, 4, 2, 2, generator=seeded(2))
    reached = bridge.sample(lambda _z, _t: source - target, source, 1, 0.005, seeded(0))
    torch.testing.assert_close(reached, target)


def test_two_steps_by_hand() -> None:
    # prediction = 2 z + t / 1000: z = 1 -> 1 - 0.5 * 3 = -0.5 -> + 0.1 * 0.5 * e -> z - 0.5 * (2 z + 0.5) = -0.25
    seen: list[float] = []

    def denoise(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(timestep.item())
        return 2 * latent + timestep / 1000

    reached = bridge.sample(denoise, latents(1.0), 2, 0.1, seeded(0))
    assert seen == [1000.0, 500.0]
    assert reached.item() == -0.25


def drift(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(latent) + timestep.reshape(-1, 1, 1, 1) / 1000


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_sample_equals_the_flow_match_scheduler(steps: int) -> None:
    """The loop as LBM drives the scheduler, with the noise of the same generator added after each inner step."""
    source = torch.randn(1, 4, 3, 3, generator=seeded(3))
    scheduler = flow_match_scheduler(steps)
    generator, latent = seeded(5), source
    for index, timestep in enumerate(scheduler.timesteps):
        latent = scheduler.step(drift(latent, timestep[None]), timestep, latent, return_dict=False)[0]
        if index < steps - 1:
            sigma = scheduler.sigmas[index + 1]
            latent = latent + 0.05 * (sigma * (1 - sigma)) ** 0.5 * torch.randn(latent.shape[1:], generator=generator)
    found = bridge.sample(drift, source, steps, 0.05, [seeded(5)])
    torch.testing.assert_close(found, latent, rtol=0, atol=1e-6)


def test_noise_of_a_sample_does_not_depend_on_the_batch() -> None:
    source = torch.randn(3, 4, 3, 3, generator=seeded(4))
    together = bridge.sample(drift, source, 4, 0.5, seeded(7))
    shorter = bridge.sample(drift, source[:2], 4, 0.5, seeded(7))
    assert torch.equal(together[:2], shorter)

    together = bridge.sample(drift, source, 4, 0.5, [seeded(i) for i in range(3)])
    alone = bridge.sample(drift, source[2:], 4, 0.5, [seeded(2)])
    assert torch.equal(together[2:], alone)
    assert not torch.equal(together, bridge.sample(drift, source, 4, 0.5, seeded(8)))


def test_last_step_adds_no_noise() -> None:
    source = torch.randn(1, 4, 3, 3, generator=seeded(4))
    assert torch.equal(bridge.sample(drift, source, 1, 0.5, seeded(0)), bridge.sample(drift, source, 1, 0.5, seeded(1)))


def test_generators_must_be_one_per_sample() -> None:
    with pytest.raises(ValueError, match="2 generators for a batch of 3: give one, or one per sample"):
        bridge.sample(drift, torch.zeros(3, 4, 2, 2), 2, 0.1, [seeded(0), seeded(1)])


def test_sample_keeps_the_dtype_and_calls_the_network_in_it() -> None:
    seen: set[torch.dtype] = set()

    def denoise(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.add(latent.dtype)
        return latent

    assert bridge.sample(denoise, torch.ones(1, 4, 2, 2).bfloat16(), 2, 0.1, seeded(0)).dtype == torch.bfloat16
    assert seen == {torch.bfloat16}
