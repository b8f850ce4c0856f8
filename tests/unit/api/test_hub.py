"""`push` of values, and functions that take names on the hub."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import lbm_lora
from hub_server import HubServer
from smallnet import small_state


def test_an_adapter_in_memory_with_an_image_is_published_and_loaded_by_name(hub: HubServer, tmp_path: Path) -> None:
    name = "mid_block.attentions.0.proj_in"
    module = lbm_lora.LoraModule(name, down=torch.ones(2, 8), up=torch.ones(8, 2), alpha=2.0)  # pyright: ignore[reportArgumentType]
    adapter = lbm_lora.Adapter({module.name: module}, {}, prefix="denoiser.")
    image = Image.new("RGB", (4, 4))
    result = lbm_lora.push(adapter, "user/repo", images=image, base_model="user/lbm")
    assert [file.path for file in result.files][1:] == [
        "lora.safetensors", "pytorch_lora_weights.safetensors", "images/image-1.png",
    ]  # fmt: skip
    found = lbm_lora.load_adapter("user/repo")
    assert torch.equal(found.modules[module.name].up, module.up)


def test_a_checkpoint_by_name(hub: HubServer, tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(4, 4)}, tmp_path / "m.safetensors")
    hub.put("user/lbm", {"model.safetensors": (tmp_path / "m.safetensors").read_bytes()})
    assert list(lbm_lora.open_checkpoint("user/lbm").specs) == ["a.weight"]
    assert [layer.name for layer in lbm_lora.layers("user/lbm").layers] == ["a"]
    with pytest.raises(lbm_lora.HubError, match="has no file other"):
        lbm_lora.fuse("user/lbm", "user/lbm/other.safetensors")


def test_convert_and_resize_take_a_lora_and_a_base_by_name(hub: HubServer, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_file(small_state(1), base)
    lora = lbm_lora.extract(base, small_state(2), rank=3).save(tmp_path / "lora.safetensors")
    hub.put("user/lora", {"lora.safetensors": lora.read_bytes()})
    hub.put("user/base", {"model.safetensors": base.read_bytes()})
    found = lbm_lora.convert("user/lora", "native", tmp_path / "c.safetensors", base="user/base")
    wanted = lbm_lora.convert(lora, "native", tmp_path / "w.safetensors", base=base)
    assert found.output.read_bytes() == wanted.output.read_bytes()
    assert lbm_lora.resize("user/lora", rank=2).params == lbm_lora.load_adapter(lora).params
    with pytest.raises(lbm_lora.ConfigError, match="base is only for LoRAs that are run"):  # once it was found
        lbm_lora.resize("user/lora", rank=2, base="user/base")
