"""ComfyUI's own keys: written, recognised and read back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.adapter import Adapter, LoraModule, load_adapter
from lbm_lora.adapter.formats import Wishes, codec_named
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName, ParamName

LORA = Adapter(
    {ModuleName("mid.to_q"): LoraModule(ModuleName("mid.to_q"), torch.ones(2, 3), torch.ones(4, 2), 1.5)},
    {ParamName("mid.norm.weight"): torch.ones(3), ParamName("mid.norm.bias"): torch.full((3,), 2.0)},
    prefix="denoiser.",
)


def test_keys_are_the_models_own_and_read_back(tmp_path: Path) -> None:
    encoded = codec_named("comfyui").encode(LORA, Wishes())
    assert sorted(encoded.tensors) == [
        "diffusion_model.mid.norm.diff",
        "diffusion_model.mid.norm.diff_b",
        "diffusion_model.mid.to_q.alpha",
        "diffusion_model.mid.to_q.lora_down.weight",
        "diffusion_model.mid.to_q.lora_up.weight",
    ]
    save_file(dict(encoded.tensors), tmp_path / "x.safetensors")
    found = load_adapter(tmp_path / "x.safetensors")
    assert (found.file_format, found.prefix) == ("comfyui", "denoiser.")
    assert found.modules[ModuleName("mid.to_q")].alpha == 1.5
    assert torch.equal(found.modules[ModuleName("mid.to_q")].delta(), LORA.modules[ModuleName("mid.to_q")].delta())
    assert all(torch.equal(found.dense[name], delta) for name, delta in LORA.dense.items())


def test_a_dense_delta_without_a_key_is_refused() -> None:
    lora = Adapter({}, {ParamName("table"): torch.ones(3)})
    with pytest.raises(AdapterError, match=r"no key for 1 dense deltas: diffusion_model\.table\.diff_param"):
        codec_named("comfyui").encode(lora, Wishes())
