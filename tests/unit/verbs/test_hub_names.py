"""Functions that take names on the hub."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lbm_lora
from hub_server import HubServer
from smallnet import small_state


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
    with pytest.raises(lbm_lora.ConfigError, match="base has no effect unless LoRAs are run"):  # once it was found
        lbm_lora.resize("user/lora", rank=2, base="user/base")
