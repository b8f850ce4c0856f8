"""An LBM as MODEL and VAE: names, dtypes, the start of a bridge, what it was loaded from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_standin import Run, State

from lbm_lora.comfy.network import load, loaded_lbm
from lbm_lora.errors import ConfigError
from lbm_lora.model.build import load_model


def test_layers_have_diffusers_names_under_diffusion_model(base: tuple[Any, Any], lists: Path) -> None:
    reference = load_model(lists / "diffusion_models/base.safetensors", dtype=torch.float32).denoiser
    model = base[0].model
    assert [key for key in model.state_dict() if key.startswith("diffusion_model.")] == [
        f"diffusion_model.{key}" for key in reference.state_dict()
    ]
    assert model.latent_format.scale_factor == 0.13025
    assert model.model_type == "flow"


def test_the_precision_is_that_of_the_denoiser_alone(run: Run) -> None:
    model, vae = run("LbmLoraLoadModel", checkpoint="base.safetensors", precision="bf16")
    assert {parameter.dtype for parameter in model.model.diffusion_model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in vae.first_stage_model.parameters()} == {torch.float32}
    assert model.model.manual_cast_dtype == torch.float32  # on a device that does not compute in bf16


def test_the_vae_gives_the_mean_of_the_posterior(base: tuple[Any, Any], lists: Path) -> None:
    reference = load_model(lists / "diffusion_models/base.safetensors", dtype=torch.float32)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = base[1].encode(images.movedim(1, -1))
    assert torch.allclose(latents * 0.13025, reference.encode(images * 2 - 1), atol=1e-5)
    decoded = base[1].decode(latents).movedim(-1, 1)
    assert torch.allclose(decoded, (reference.decode(latents * 0.13025) / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_a_bridge_starts_from_the_latent_image_or_from_a_source_given_as_noise(base: tuple[Any, Any]) -> None:
    sampling = base[0].model.model_sampling
    source, noise, sigma = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 3.0), torch.tensor(1.0)
    assert torch.equal(sampling.noise_scaling(sigma, noise, source), source)
    assert torch.equal(sampling.noise_scaling(sigma, noise, torch.zeros_like(source)), noise)


def test_a_model_knows_its_file_also_as_a_clone(base: tuple[Any, Any], comfy: State) -> None:
    loaded = loaded_lbm(base[0].clone())
    assert loaded.path == comfy.root / "diffusion_models/base.safetensors"
    assert loaded.pixels_per_latent == 8
    assert loaded.size == 128


def test_a_file_that_is_not_an_lbm_is_refused(comfy: State) -> None:
    with pytest.raises(ConfigError, match=r"relight\.safetensors"):
        load(comfy.root / "loras/relight.safetensors")
