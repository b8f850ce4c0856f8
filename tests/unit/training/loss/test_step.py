"""The loss of a batch, and its gradients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lbm_lora.model.build import LBMModel
from lbm_lora.training.data import Batch, collate, open_data
from lbm_lora.training.loss.objective import objective_of, sample_generators
from lbm_lora.training.loss.step import BatchLoss, BridgeStep, decode
from lbm_lora.training.settings.train_config import TrainConfig

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


@torch.no_grad()
def test_masks_and_weights_reach_the_loss(config: Config, model: LBMModel) -> None:
    timestep = torch.tensor([1000.0])
    plain, masked = (batch_of(config(mask_key=key), 0) for key in (None, "mask.png"))
    step = make_step(model)
    loss = step.losses_at(plain, timestep, stream="noise")
    assert not torch.allclose(step.losses_at(masked, timestep, stream="noise"), loss)
    doubled = make_step(model, latent_loss_weight=2.0).losses_at(plain, timestep, stream="noise")
    assert torch.allclose(doubled, 2 * loss)


@torch.no_grad()
def test_cached_latents_give_the_loss_of_the_images(config: Config, model: LBMModel) -> None:
    step, batch = make_step(model), batch_of(config(), 0, 1)
    cached = replace(batch, latents=step.latents(batch), source=None, target=None)
    assert torch.equal(step.losses(cached), step.losses(batch))


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


def test_decoding_with_gradients_is_the_models_own(model: LBMModel) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode(model, latents).detach(), model.decode(latents))


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
