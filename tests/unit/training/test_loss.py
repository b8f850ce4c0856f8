"""The loss: its objective, its draws, its terms against numbers computed by hand, and the loss of a batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lbm_lora.errors import ConfigError
from lbm_lora.model.build import LBMModel
from lbm_lora.model.config import LBMConfig
from lbm_lora.training.data.dataset import Batch, collate, open_data
from lbm_lora.training.loss import (
    BatchLoss,
    BridgeStep,
    Objective,
    crop,
    crop_windows,
    draw_timesteps,
    latent_loss,
    latent_mask,
    objective_of,
    pixel_loss,
    sample_generators,
)
from lbm_lora.training.settings import ObjectiveSettings, TrainConfig

L2 = objective_of(ObjectiveSettings(pixel_loss_type="l2", pixel_loss_weight=1), LBMConfig())
L1 = replace(L2, latent_loss_type="l1", pixel_loss_type="l1")
LPIPS = replace(L2, pixel_loss_type="lpips")


def seeded(count: int, seed: int = 0) -> list[torch.Generator]:
    return sample_generators(seed, 0, range(count), "crop")


def test_latent_loss_by_hand() -> None:
    # sample 0 differs by 1, 2, 3, 4; sample 1 by 0, 0, 0, -2
    prediction = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 3.0]]).reshape(2, 1, 2, 2)
    velocity = torch.tensor([[0.0] * 4, [5.0] * 4]).reshape(2, 1, 2, 2)
    assert latent_loss(L2, prediction, velocity).tolist() == [7.5, 1.0]
    assert latent_loss(L1, prediction, velocity).tolist() == [2.5, 0.5]


def test_masked_latents_do_not_enter_the_loss() -> None:
    # two channels of 1 x 2 latents, 2 pixels to one: one black pixel under the left one of sample 0
    mask = torch.ones(2, 1, 2, 4)
    mask[0, 0, 1, 0] = 0
    prediction = torch.tensor([[[[9.0, 1.0]], [[9.0, 3.0]]]] * 2)
    loss = latent_loss(L2, prediction, torch.zeros(2, 2, 1, 2), mask)
    # (1 + 9) / 2 valid elements; (81 + 1 + 81 + 9) / 4 elements
    assert loss.tolist() == [5.0, 43.0]


@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    factor=st.sampled_from([1, 2, 8]),
    black=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 23)), max_size=4),
)
def test_a_black_pixel_makes_its_latent_invalid(
    rows: int, columns: int, factor: int, black: list[tuple[int, int]]
) -> None:
    mask = torch.ones(1, 3, rows * factor, columns * factor)
    expected = torch.ones(1, 1, rows, columns, dtype=torch.bool)
    for row, column in black:
        row, column = row % (rows * factor), column % (columns * factor)
        mask[0, 0, row, column] = 0.4
        expected[0, 0, row // factor, column // factor] = False
    mask[:, 1:] = 0  # other planes are not read
    assert torch.equal(latent_mask(mask, rows, columns), expected)


def test_pixel_loss_by_hand() -> None:
    # clamped: 1, -1, 0.5; target 0: squares 1, 1, 0.25
    decoded = torch.tensor([3.0, -2.0, 0.5]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    target = torch.zeros(1, 3, 1, 3)
    assert pixel_loss(L2, decoded, target, None).tolist() == [0.75]
    assert pixel_loss(L1, decoded, target, None).item() == pytest.approx(2.5 / 3)
    mask = torch.tensor([0.0, 1.0, 1.0]).reshape(1, 1, 1, 3)
    assert pixel_loss(L2, decoded, target, mask).tolist() == [0.625]
    assert pixel_loss(L2, decoded, target, torch.zeros(1, 1, 1, 3)).tolist() == [0.0]


def counting(made: Tensor, wanted: Tensor) -> Tensor:
    """Stands for LPIPS: how much two batches differ, with the axes that the network's own answer has."""
    assert made.shape == wanted.shape
    return (made - wanted).abs().sum((1, 2, 3), keepdim=True)


def test_lpips_gets_clamped_images_and_grey_where_the_mask_is_black() -> None:
    decoded, target = torch.full((2, 3, 4, 4), 5.0), torch.full((2, 3, 4, 4), -1.0)
    # 3 channels of 4 x 4 pixels that differ by 2
    assert pixel_loss(LPIPS, decoded, target, None, counting).tolist() == [96.0, 96.0]
    mask = torch.ones(2, 1, 4, 4)
    mask[1, :, :, :2] = 0
    assert pixel_loss(LPIPS, decoded, target, mask, counting).tolist() == [96.0, 48.0]


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), size=st.integers(8, 100), step=st.sampled_from([1, 4, 8]),
    seed=st.integers(0, 50),
)  # fmt: skip
def test_windows_lie_in_the_image_on_the_grid(rows: int, columns: int, size: int, step: int, seed: int) -> None:
    height, width = rows * step, columns * step
    for window in crop_windows(height, width, size, seeded(4, seed), step=step):
        for side, length in zip(window, (height, width), strict=True):
            assert 0 <= side.start < side.stop <= length
            assert side.start % step == side.stop % step == 0
            assert side.stop - side.start == (length if length <= size else size // step * step)


def test_latents_are_cropped_with_their_images() -> None:
    latents = torch.arange(32.0).reshape(2, 1, 4, 4)
    images = latents.repeat_interleave(8, 2).repeat_interleave(8, 3)
    windows = crop_windows(32, 32, 16, seeded(2), step=8)
    found = crop(latents, windows, step=8)
    assert found.shape == (2, 1, 2, 2)
    assert torch.equal(found.repeat_interleave(8, 2).repeat_interleave(8, 3), crop(images, windows))


@pytest.mark.parametrize("objective", [L2, L1])
def test_halves_of_a_batch_give_the_gradient_of_the_whole(objective: Objective) -> None:
    """Two processes with half of the samples each, however large their masks are."""
    velocity = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 1, 16, 16)
    mask[0, :, :8] = mask[3, :, :, :8] = mask[3, :, 8:] = 0
    weight = torch.tensor(0.5, requires_grad=True)

    def gradient(part: slice) -> Tensor:
        loss = latent_loss(objective, weight * velocity[part], velocity[part], mask[part]).mean()
        return torch.autograd.grad(loss, weight)[0]

    halves = (gradient(slice(0, 2)) + gradient(slice(2, 4))) / 2
    torch.testing.assert_close(halves, gradient(slice(0, 4)), rtol=1e-6, atol=0)


DEPTH = LBMConfig(latent_loss_type="l1", pixel_loss_type="l1", prob=(0.025, 0.05, 0.025, 0.9), bridge_noise_sigma=0.1)
LBM_UNIFORM = LBMConfig(timestep_sampling="uniform", selected_timesteps=None, prob=None)
LBM_LOG_NORMAL = LBMConfig(
    timestep_sampling="log_normal", logit_mean=0.5, logit_std=2.0, selected_timesteps=None, prob=None
)


def test_what_the_run_says_wins() -> None:
    run = ObjectiveSettings(
        latent_loss_type="l2",
        pixel_loss_type="l2",
        pixel_loss_max_size=128,
        selected_timesteps=(500, 1000),
        prob=(0.25, 0.75),
        bridge_noise_sigma=0,
    )
    objective = objective_of(run, DEPTH)
    assert (objective.latent_loss_type, objective.pixel_loss_type, objective.pixel_loss_max_size) == ("l2", "l2", 128)
    assert (objective.selected_timesteps, objective.prob) == ((500, 1000), (0.25, 0.75))
    assert objective.bridge_noise_sigma == 0.0


def test_another_sampling_than_the_bases() -> None:
    objective = objective_of(ObjectiveSettings(timestep_sampling="uniform"), DEPTH)
    assert (objective.timestep_sampling, objective.selected_timesteps, objective.prob) == ("uniform", (), ())
    custom = ObjectiveSettings(timestep_sampling="custom_timesteps", selected_timesteps=(250, 500))
    assert objective_of(custom, LBM_UNIFORM).prob == (0.5, 0.5)


@pytest.mark.parametrize(
    ("run", "base", "message"),
    [
        (
            {"selected_timesteps": (500.0,)},
            LBM_UNIFORM,
            "selected_timesteps needs timestep_sampling custom_timesteps, but the base's own is uniform. "
            "Add timestep_sampling: custom_timesteps, or remove selected_timesteps.",
        ),
        (
            {"logit_std": 1.0},
            DEPTH,
            "logit_std needs timestep_sampling log_normal, but the base's own is custom_timesteps. "
            "Add timestep_sampling: log_normal, or remove logit_std.",
        ),
        (
            {"timestep_sampling": "custom_timesteps"},
            LBM_UNIFORM,
            "timestep_sampling custom_timesteps needs selected_timesteps: the base's own has none.",
        ),
        ({"prob": (0.5, 0.5)}, DEPTH, "prob has 2 values, but selected_timesteps has 4. Give one for each."),
    ],
)
def test_keys_that_do_not_go_with_the_base(run: dict[str, Any], base: LBMConfig, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        objective_of(ObjectiveSettings(**run), base)
    assert str(caught.value) == message


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


Config = Callable[..., TrainConfig]


def make_step(model: LBMModel, **values: Any) -> BridgeStep:
    chosen = TrainConfig(base_model_path=Path("b"), train_folder=Path("p"), lora_rank=1)
    return BridgeStep(model=model, objective=replace(objective_of(chosen, model.config), **values), seed=5)


def batch_of(config: TrainConfig, *indices: int) -> Batch:
    data = open_data(config, "train", seed=0)
    return collate([data[index] for index in indices])


@torch.no_grad()
def test_the_loss_of_a_sample_depends_on_nothing_else(config: Config, model: LBMModel) -> None:
    step = make_step(model)
    together = step.losses(batch_of(config(), 0, 1, 2))
    alone = torch.cat([step.losses(batch_of(config(), index)) for index in (0, 1, 2)])
    assert together.shape == (3,)
    assert torch.allclose(together, alone, rtol=1e-5)
    assert len(set(together.tolist())) == 3
    other = replace(step, seed=6).losses(batch_of(config(), 0, 1, 2))
    assert not torch.allclose(together, other, rtol=1e-3)
    later = step.losses(replace(batch_of(config(), 0, 1, 2), epoch=1))
    assert not torch.allclose(together, later, rtol=1e-3)


@torch.no_grad()
def test_the_loss_is_that_of_the_bridge(config: Config, model: LBMModel) -> None:
    step = make_step(model, bridge_noise_sigma=0.1)
    batch = batch_of(config(), 1)
    assert batch.source is not None
    assert batch.target is not None
    source, target = model.encode(batch.source), model.encode(batch.target)
    noise = torch.randn(source.shape[1:], generator=sample_generators(5, 0, [1], "noise")[0])
    noisy = 0.5 * source + 0.5 * target + 0.1 * 0.5 * noise
    prediction = model.denoise(noisy, torch.tensor([500.0]))
    wanted = (prediction - (source - target)).square().mean()
    assert torch.allclose(step.losses_at(batch, torch.tensor([500.0]), stream="noise")[0], wanted, rtol=1e-5)


def test_a_pixel_loss_has_gradients_through_the_decoder(config: Config, model: LBMModel) -> None:
    def distance(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        assert made.shape[-2:] == wanted.shape[-2:] == (48, 48)
        return (made - wanted).square().mean((1, 2, 3))

    pixels = {"pixel_loss_weight": 3.0, "pixel_loss_max_size": 50, "pixel_loss_type": "lpips"}
    step = replace(make_step(model, latent_loss_weight=0.0, **pixels), lpips=distance)
    model.denoiser.conv_out.requires_grad_(True)
    losses = step.losses(batch_of(config(mask_key="mask.png"), 0, 1))
    losses.mean().backward()
    weight = model.denoiser.conv_out.weight
    assert isinstance(weight, nn.Parameter)
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.vae.parameters())


@pytest.mark.parametrize("mixed", [False, True])
def test_the_module_gives_the_mean_in_the_precision_of_the_run(config: Config, model: LBMModel, mixed: bool) -> None:
    step, batch = replace(make_step(model), mixed=mixed), batch_of(config(), 0, 1)
    with torch.no_grad():
        mean = step.losses(batch).mean()
        loss = BatchLoss(step)(batch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mean) != mixed
    assert torch.allclose(loss, mean, rtol=0.02)
    assert {name.partition(".")[0] for name, _ in BatchLoss(step).named_parameters()} == {"denoiser", "vae"}
