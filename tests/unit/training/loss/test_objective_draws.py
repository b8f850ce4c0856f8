"""What chance decides: the same for a sample whatever is drawn beside it, and with the right distribution."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lbm_lora.model.config import LBMConfig
from lbm_lora.training.loss.objective import Objective, bridge_state, draw_timesteps, objective_of, sample_generators
from lbm_lora.training.settings.learning_keys import ObjectiveSettings

CUSTOM = objective_of(ObjectiveSettings(), LBMConfig(prob=(0.1, 0.2, 0.0, 0.7)))
UNIFORM = replace(CUSTOM, timestep_sampling="uniform", selected_timesteps=(), prob=())
LOG_NORMAL = replace(UNIFORM, timestep_sampling="log_normal")

MANY = 4000


def drawn(objective: Objective, count: int = MANY) -> torch.Tensor:
    return draw_timesteps(objective, sample_generators(0, 0, range(count), "timesteps"))


def numbers(*args: Any) -> list[float]:
    return [torch.rand((), generator=generator).item() for generator in sample_generators(*args)]


def test_a_samples_draws_depend_on_seed_epoch_sample_and_stream_alone() -> None:
    batch = numbers(1, 2, [7, 8, 9], "noise")
    assert numbers(1, 2, [9, 7], "noise") == [batch[2], batch[0]]
    others = [numbers(0, 2, [7], "noise"), numbers(1, 3, [7], "noise"), numbers(1, 2, [7], "crop")]
    swapped = [numbers(2, 1, [7], "noise"), numbers(1, 27, [7], "noise"), numbers(12, 7, [7], "noise")]
    assert len({batch[0], *(value for (value,) in others + swapped)}) == 7


def test_generators_are_the_same_in_every_version() -> None:
    """A resumed run goes on with them: their seeds are part of the format."""
    seeds = [generator.initial_seed() for generator in sample_generators(0, 0, [0, 1], "noise")]
    assert seeds == [461445201, 2458711490]  # XXH32 of noise/0/0/0 and noise/0/0/1


def test_custom_timesteps_come_by_their_probabilities() -> None:
    timesteps = drawn(CUSTOM)
    assert timesteps.dtype == torch.float32
    assert set(timesteps.tolist()) == {250.0, 500.0, 1000.0}
    for timestep, prob in ((250, 0.1), (500, 0.2), (1000, 0.7)):
        # five standard deviations of the share of MANY draws
        assert (timesteps == timestep).double().mean().item() == pytest.approx(
            prob, abs=5 * (prob * (1 - prob) / MANY) ** 0.5
        )


def test_one_timestep_without_a_choice() -> None:
    assert drawn(replace(CUSTOM, prob=(0.0, 0.0, 1.0, 0.0)), 50).tolist() == [750.0] * 50


def test_uniform_timesteps_are_the_whole_numbers_to_1000() -> None:
    timesteps = drawn(UNIFORM)
    assert torch.equal(timesteps, timesteps.round())
    assert (timesteps.min().item(), timesteps.max().item()) == (1.0, 1000.0)
    counts = torch.histc(timesteps, bins=4, min=0.5, max=1000.5)
    assert (counts - MANY / 4).abs().max().item() < 5 * (MANY * 0.25 * 0.75) ** 0.5


def test_log_normal_timesteps_are_a_logistic_function_of_normal_values() -> None:
    timesteps = drawn(LOG_NORMAL)
    assert timesteps.min().item() >= 1
    assert timesteps.max().item() <= 1000
    # the quartiles of a normal value are +-0.6745, and their logistic function 0.3375 and 0.6625
    quartiles = torch.quantile(timesteps, torch.tensor([0.25, 0.5, 0.75]))
    assert quartiles.tolist() == pytest.approx([337.5, 500, 662.5], abs=15)


def test_the_mean_of_log_normal_moves_timesteps_towards_the_target() -> None:
    """u is the paper's t, which runs from the source, 0, to the target: large values are small timesteps."""
    narrow = replace(LOG_NORMAL, logit_mean=1.0986123, logit_std=1e-6)  # the logistic function of ln 3 is 3/4
    assert drawn(narrow, 20).tolist() == pytest.approx([250.0] * 20, abs=1)
    assert drawn(replace(narrow, logit_mean=50.0), 20).tolist() == [1.0] * 20
    assert drawn(replace(narrow, logit_mean=-50.0), 20).tolist() == [1000.0] * 20


def test_the_bridge_by_hand() -> None:
    # sigma 0.25: 0.25 * 4 + 0.75 * 8 + 0.1 * sqrt(0.25 * 0.75) * noise
    source, target = torch.full((1, 1, 1, 1), 4.0), torch.full((1, 1, 1, 1), 8.0)
    noise = torch.randn(1, 1, 1, generator=sample_generators(0, 0, [3], "noise")[0]).item()
    objective = replace(CUSTOM, bridge_noise_sigma=0.1)
    noisy, sigma = bridge_state(objective, source, target, torch.tensor([250.0]), sample_generators(0, 0, [3], "noise"))
    assert sigma.tolist() == [0.25]
    assert noisy.item() == pytest.approx(7 + 0.1 * 0.4330127 * noise, abs=1e-6)


def test_the_bridge_starts_at_the_source() -> None:
    source, target = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    generators = sample_generators(0, 0, [0, 1], "noise")
    noisy, _ = bridge_state(CUSTOM, source, target, torch.tensor([1000.0, 500.0]), generators)
    assert noisy.dtype == torch.bfloat16
    assert torch.equal(noisy[0], source[0])
    assert not torch.equal(noisy[1], source[1])


def test_a_samples_noise_does_not_depend_on_its_batch() -> None:
    source, target = torch.randn(2, 3, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([250.0, 500.0, 750.0])
    whole, _ = bridge_state(CUSTOM, source, target, timesteps, sample_generators(5, 1, [4, 2, 9], "noise"))
    part, _ = bridge_state(CUSTOM, source[1:], target[1:], timesteps[1:], sample_generators(5, 1, [2, 9], "noise"))
    assert torch.equal(whole[1:], part)
