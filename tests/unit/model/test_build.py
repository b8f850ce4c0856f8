"""A model built from a checkpoint: whole, strict, in the asked dtype, and what its methods compute."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lbm_lora.adapter import LoraModule
from lbm_lora.errors import CheckpointError
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.streamed_weights import StreamedWeights
from lbm_lora.naming import ModuleName, ParamName
from standins import TINY, base_tensors, vae_config, write_lbm_yaml


@pytest.fixture(scope="module")
def model(tuned_file: Path) -> LBMModel:
    return load_model(tuned_file, dtype=torch.float32)


@pytest.fixture(scope="module")
def vae(tuned_file: Path) -> Any:
    """The same VAE, loaded the long way."""
    network: Any = AutoencoderKL.from_config(vae_config())
    network.load_state_dict(part(tuned_file, "vae.vae_model."), strict=True)
    return network.eval()


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


def test_a_missing_tensor_stops(tmp_path: Path) -> None:
    tensors = base_tensors(TINY, dtype=torch.bfloat16)
    del tensors["denoiser.conv_out.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    write_lbm_yaml(tmp_path, TINY)
    with pytest.raises(CheckpointError, match=r"1 missing: denoiser\.conv_out\.bias\."):
        load_model(tmp_path)


def test_the_ckpt_of_lightning_and_torch_compile(tmp_path: Path, tuned_file: Path) -> None:
    tensors = load_file(tuned_file)
    wrapped = {f"model.{key.replace('denoiser.', 'denoiser._orig_mod.')}": tensor for key, tensor in tensors.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "last.ckpt")
    write_lbm_yaml(tmp_path, TINY)
    found = load_model(tmp_path / "last.ckpt").denoiser.state_dict()
    assert all(torch.equal(tensor, tensors[f"denoiser.{name}"]) for name, tensor in found.items())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3)).bfloat16()
    made.requires_grad_(requires_grad=False)
    return made


def test_weights_are_in_memory_only_while_their_module_runs() -> None:
    streamed = network()
    shapes = StreamedWeights(streamed).shapes
    sizes: list[int] = []
    streamed[1].register_forward_hook(lambda *_: sizes.append(sum(p.numel() for p in streamed.parameters())))
    streamed(torch.randn(5, 4))
    assert sizes == [0]
    assert sum(parameter.numel() for parameter in streamed.parameters()) == 0
    assert shapes[ParamName("0.weight")] == (8, 4)
    assert all(parameter.dtype == torch.float32 for parameter in streamed.parameters())


def test_other_values_count_from_the_next_run() -> None:
    inputs, streamed, expected = torch.randn(5, 4), network(), network().float()
    weights = StreamedWeights(streamed)
    before = streamed(inputs)
    weights.put(ParamName("2.bias"), lambda: torch.ones(3))
    expected[2].bias.data = torch.ones(3)
    assert not torch.equal(streamed(inputs), before)
    assert torch.equal(streamed(inputs), expected(inputs))


def test_factors_give_what_their_product_gives_until_other_values_are_put() -> None:
    torch.manual_seed(1)
    streamed = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(16, 3)).bfloat16()
    values = {name: parameter.data.float() for name, parameter in streamed.named_parameters()}
    inputs, weights = torch.randn(5, 2, 4, 4), StreamedWeights(streamed.requires_grad_(requires_grad=False))
    before = streamed(inputs)
    modules = (
        LoraModule(ModuleName("0"), torch.randn(1, 2, 3, 3), torch.randn(4, 1, 1, 1), 3.0),
        LoraModule(ModuleName("2"), torch.randn(2, 16), torch.randn(3, 2), 1.0),
    )
    for module in modules:
        name = ParamName(f"{module.name}.weight")
        base = partial(values.__getitem__, name)
        weights.put(name, base, module)
        low_rank = streamed(inputs)
        weights.put(name, lambda one=module, base=base: base() + one.delta())
        torch.testing.assert_close(low_rank, streamed(inputs), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(low_rank, before, rtol=1e-2)
        weights.put(name, base)
        assert torch.equal(streamed(inputs), before)
