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


def test_files_for_a_stock_sdxl_have_the_names_of_the_single_file() -> None:
    key = "diffusion_model.output_blocks.3.0.skip_connection"
    found = load_adapter(
        {f"{key}.lora_B.weight": torch.ones(4, 2, 1, 1), f"{key}.lora_A.weight": torch.ones(2, 3, 1, 1)}
    )
    assert (found.file_format, list(found.modules)) == ("comfyui", ["up_blocks.1.resnets.0.conv_shortcut"])


def test_a_file_of_fastvideo() -> None:
    tensors = {"mid.to_q.lora_A.weight": torch.ones(2, 3), "mid.to_q.lora_B.weight": torch.ones(4, 2)}
    tensors |= {"mid.norm.diff": torch.ones(3), "mid.norm.diff_b": torch.ones(3), "table.diff_param": torch.ones(2)}
    found = load_adapter(tensors)
    assert (list(found.modules), list(found.dense)) == (["mid.to_q"], ["mid.norm.weight", "mid.norm.bias", "table"])
