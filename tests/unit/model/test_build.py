"""A model built from a checkpoint: whole, strict, in the asked dtype, and what its methods compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.errors import CheckpointError, ConfigError, ImageError
from lbm_lora.model.bridge_pipeline import follow_bridge
from lbm_lora.model.build import LBMModel, load_model
from standins import TINY, base_tensors, lbm_unet_config, vae_config, write_lbm_yaml, write_tuned


@pytest.fixture(scope="module")
def model(tuned_file: Path) -> LBMModel:
    return load_model(tuned_file, dtype=torch.float32)


@pytest.fixture(scope="module")
def unet(tuned_file: Path) -> Any:
    """The same denoiser, loaded the long way."""
    network: Any = UNet2DConditionModel.from_config(lbm_unet_config(TINY))
    network.load_state_dict(part(tuned_file, "denoiser."), strict=True)
    return network.eval()


@pytest.fixture(scope="module")
def vae(tuned_file: Path) -> Any:
    """The same VAE, loaded the long way."""
    network: Any = AutoencoderKL.from_config(vae_config())
    network.load_state_dict(part(tuned_file, "vae.vae_model."), strict=True)
    return network.eval()


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=generator) * 2 - 1


def part(path: Path, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.float() for k, v in load_file(path).items() if k.startswith(prefix)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_tensor_is_that_of_the_file(tuned_file: Path, dtype: torch.dtype) -> None:
    model = load_model(tuned_file, dtype=dtype)
    stored = load_file(tuned_file)
    for prefix, network in (("denoiser.", model.denoiser), ("vae.vae_model.", model.vae)):
        expected = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        state = network.state_dict()
        assert state.keys() == expected.keys()
        cast = dtype if prefix == "denoiser." else model.vae_dtype
        assert all(torch.equal(state[name], tensor.to(cast)) for name, tensor in expected.items())
    tensors = (*model.denoiser.parameters(), *model.denoiser.buffers(), *model.vae.parameters(), *model.vae.buffers())
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in tensors)
    assert not any(module.training for module in (*model.denoiser.modules(), *model.vae.modules()))


def test_weights_in_the_dtype_of_the_file_are_views_of_it(tuned_file: Path) -> None:
    """No copy in memory: all tensors lie in one mapped range about as large as the file."""
    model = load_model(tuned_file, dtype=torch.bfloat16)
    places = [p.data_ptr() for p in (*model.denoiser.parameters(), *model.vae.parameters())]
    assert max(places) - min(places) < tuned_file.stat().st_size


def test_writing_to_a_weight_leaves_the_file_alone(tuned_file: Path) -> None:
    before = tuned_file.read_bytes()
    model = load_model(tuned_file, dtype=torch.bfloat16)
    with torch.no_grad():
        model.denoiser.conv_in.weight.add_(1)
    assert tuned_file.read_bytes() == before


def test_the_vae_is_upcast_where_fp16_would_overflow(tuned_file: Path, tmp_path: Path) -> None:
    assert load_model(tuned_file, dtype=torch.float16).vae_dtype == torch.float32
    assert load_model(tuned_file, dtype=torch.bfloat16).vae_dtype == torch.bfloat16
    path = write_tuned(tmp_path, TINY)
    (tmp_path / "config.yaml").write_text(
        (tmp_path / "config.yaml").read_text().replace("upcast: true", "upcast: false")
    )
    assert load_model(path, dtype=torch.float16).vae_dtype == torch.float16


def test_encode_is_the_scaled_mean(model: LBMModel, vae: Any, images: Tensor) -> None:
    with torch.no_grad():
        expected = vae.encode(images).latent_dist.mean * 0.13025
    torch.testing.assert_close(model.encode(images), expected)


def test_encode_samples_only_on_request(model: LBMModel, vae: Any, images: Tensor) -> None:
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    noise = torch.stack([torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    expected = (posterior.mean + posterior.std * noise) * 0.13025
    torch.testing.assert_close(model.encode(images, generator=seeds), expected)


def test_decode_undoes_the_scaling(model: LBMModel, vae: Any, generator: torch.Generator) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        expected = vae.decode(latents / 0.13025).sample
    torch.testing.assert_close(model.decode(latents), expected)


def test_a_shift_of_the_latents_is_honoured(tmp_path: Path, images: Tensor) -> None:
    path = write_tuned(tmp_path, TINY)
    plain = load_model(path, dtype=torch.float32)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("force_upcast: true", "force_upcast: true\n  shift_factor: 2.0"))
    shifted = load_model(path, dtype=torch.float32)
    torch.testing.assert_close(shifted.encode(images), plain.encode(images) - 2.0 * 0.13025)
    torch.testing.assert_close(shifted.decode(shifted.encode(images)), plain.decode(plain.encode(images)))


def test_large_latents_are_decoded_in_tiles(model: LBMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    decode: Any = model.vae.decode

    def watched(latents: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        seen.append(latents.shape)
        return decode(latents, return_dict=return_dict)

    monkeypatch.setattr(model.vae, "decode", watched)
    latents = torch.zeros(1, 4, 4, 136)
    assert model.decode(latents).shape == (1, 3, 32, 1088)
    assert seen == [(1, 4, 4, 128)] * 2
    seen.clear()
    assert model.decode(latents, tiled=False).shape == (1, 3, 32, 1088)
    assert model.decode(torch.zeros(1, 4, 4, 8), tiled=True).shape == (1, 3, 32, 64)
    assert seen == [(1, 4, 4, 136), (1, 4, 4, 8)]


def test_tiles_do_not_change_the_image_much(model: LBMModel, generator: torch.Generator) -> None:
    latents = torch.randn(1, 4, 4, 136, generator=generator) * 0.13
    whole, tiled = model.decode(latents, tiled=False), model.decode(latents, tiled=True)
    assert (whole - tiled).abs().mean() < 0.1 * whole.abs().mean()


def test_denoise_attends_without_text(model: LBMModel, unet: Any, generator: torch.Generator) -> None:
    latents = torch.randn(2, 4, 8, 12, generator=generator)
    timestep = torch.tensor([1000.0, 250.0])
    with torch.no_grad():
        expected = unet(latents, timestep, encoder_hidden_states=None).sample
        torch.testing.assert_close(model.denoise(latents, timestep), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(
    tuned_file: Path, model: LBMModel, images: Tensor, dtype: torch.dtype, generator: torch.Generator
) -> None:
    def translated(found: LBMModel) -> Tensor:
        source = found.encode(images[:1])
        return found.decode(follow_bridge(found.denoise, source, 1, 0.005, generator))

    half, exact = translated(load_model(tuned_file, dtype=dtype)), translated(model)
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    assert (half - exact).abs().mean() < 0.05


def test_sides_must_be_multiples(model: LBMModel) -> None:
    with pytest.raises(ImageError) as caught:
        model.encode(torch.zeros(1, 3, 64, 50))
    assert str(caught.value) == "images of 50x64: both sides must be multiples of 8."


def test_a_missing_tensor_stops(tmp_path: Path) -> None:
    tensors = base_tensors(TINY, dtype=torch.bfloat16)
    del tensors["denoiser.conv_out.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    write_lbm_yaml(tmp_path, TINY)
    with pytest.raises(CheckpointError, match=r"1 missing: denoiser\.conv_out\.bias\."):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"unet_input_channels": 8, "conditioning_images_keys": ["shading"]}, "8 channels, 4 of the latent and 4"),
        ({"conditioning_masks_keys": ["mask"]}, "4 channels, 4 of the latent and 0"),
    ],
)
def test_conditioning_images_are_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    write_tuned(tmp_path, TINY, **changes)
    yaml_file = tmp_path / "config.yaml"
    channels = changes.get("unet_input_channels", 4)
    yaml_file.write_text(yaml_file.read_text().replace("  in_channels: 4", f"  in_channels: {channels}"))
    with pytest.raises(ConfigError, match=f"its denoiser takes {what} of conditioning images"):
        load_model(tmp_path)


def test_the_ckpt_of_lightning_and_torch_compile(tmp_path: Path, tuned_file: Path) -> None:
    tensors = load_file(tuned_file)
    wrapped = {f"model.{key.replace('denoiser.', 'denoiser._orig_mod.')}": tensor for key, tensor in tensors.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "last.ckpt")
    write_lbm_yaml(tmp_path, TINY)
    found = load_model(tmp_path / "last.ckpt").denoiser.state_dict()
    assert all(torch.equal(tensor, tensors[f"denoiser.{name}"]) for name, tensor in found.items())
