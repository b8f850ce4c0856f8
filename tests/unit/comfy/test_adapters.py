"""LoRAs onto a MODEL and onto an LBM_MODEL; what they are put onto stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lbm_lora.adapter import LoraScale
from lbm_lora.comfy.adapters import scale_of, with_lora
from lbm_lora.errors import AdapterError
from lbm_lora.model.build import load_model


class Wrapped(nn.Module):
    """An LBM_MODEL of the wrapper's shape."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        loaded = load_model(path, dtype=torch.float32)
        self.vae, self.denoiser, self.conditioner = loaded.vae, loaded.denoiser, nn.Identity()


@pytest.fixture
def wrapped(lists: Path) -> Wrapped:
    return Wrapped(lists / "diffusion_models/base.safetensors")


def output(model: Any) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.denoiser(latents, torch.tensor([1000.0]), encoder_hidden_states=None).sample


@pytest.mark.slow
def test_a_copy_of_an_lbm_model_is_adapted_and_shares_its_matrices(wrapped: Wrapped, lists: Path) -> None:
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    plain = output(wrapped)
    lora = lists / "loras/relight.safetensors"
    adapted = with_lora(wrapped, lora, LoraScale(1.0))
    assert not torch.allclose(output(adapted), plain, atol=1e-3)
    assert torch.equal(output(wrapped), plain)
    assert all(torch.equal(value, before[name]) for name, value in wrapped.state_dict().items())
    own = {name for name, one in adapted.named_parameters() if one is not dict(wrapped.named_parameters())[name]}
    assert own
    assert all(name.startswith("denoiser.") for name in own)
    matrix = "denoiser.conv_in.weight"
    assert matrix not in own


@pytest.mark.slow
def test_loras_on_an_lbm_model_stack(wrapped: Wrapped, lists: Path) -> None:
    lora = lists / "loras/relight.safetensors"
    twice = with_lora(with_lora(wrapped, lora, LoraScale(1.0)), lora, LoraScale(-1.0))
    assert torch.allclose(output(twice), output(wrapped), atol=1e-4)


def test_layers_without_a_strength_get_no_patch(base: tuple[Any, Any], lists: Path) -> None:
    model, _ = base
    adapted = with_lora(model, lists / "loras/attention.safetensors", scale_of(1.0, "to_q=0,to_k=0.25"))
    assert not model.patches
    assert not [key for key in adapted.patches if ".to_q." in key]
    strengths = {key: [strength for strength, _ in patches] for key, patches in adapted.patches.items()}
    assert {tuple(one) for key, one in strengths.items() if ".to_k." in key} == {(0.25,)}
    assert {tuple(one) for key, one in strengths.items() if ".to_v." in key} == {(1.0,)}


def test_an_lbm_model_that_is_a_dict_is_refused(lists: Path) -> None:
    with pytest.raises(AdapterError, match="this LBM_MODEL is a dict without a denoiser"):
        with_lora({}, lists / "loras/relight.safetensors", LoraScale(1.0))


def test_a_strength_and_blocks_are_one_scale() -> None:
    assert scale_of(0.5, " ") == LoraScale(0.5)
    assert scale_of(1.0, "attn1=0").text == "1,attn1=0"
    assert scale_of(-1e-05, "attn1=0").default == -1e-05
