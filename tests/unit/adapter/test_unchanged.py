"""Adapters that are no longer what their file holds."""

import dataclasses
from pathlib import Path

import torch

from lbm_lora.adapter import Adapter, LoraModule, load_adapter
from lbm_lora.adapter.adapter_file import is_unchanged
from lbm_lora.naming import ModuleName, ParamName


def made(value: float = 1.0, alpha: float = 2.0) -> Adapter:
    names = [ModuleName("a"), ModuleName("b")]
    modules = {name: LoraModule(name, torch.ones(2, 4), torch.full((8, 2), value), alpha) for name in names}
    return Adapter(modules, {ParamName("c.bias"): torch.ones(3)})


def test_what_was_loaded_is_unchanged(tmp_path: Path) -> None:
    loaded = load_adapter(made().save(tmp_path / "x.safetensors"))
    assert is_unchanged(loaded)
    assert not is_unchanged(loaded.filtered(lambda name: not name.startswith("a")))
    assert not is_unchanged(loaded.cast(torch.float16))
    assert not is_unchanged(
        dataclasses.replace(loaded, metadata=dataclasses.replace(loaded.metadata, facts={"a": "b"}))
    )
    assert not is_unchanged(made())


def test_a_file_that_was_replaced_or_removed_is_another(tmp_path: Path) -> None:
    for other in (made(value=3.0), made(alpha=3.0)):
        loaded = load_adapter(made().save(tmp_path / "x.safetensors"))
        other.save(tmp_path / "x.safetensors")
        assert not is_unchanged(loaded)
    (tmp_path / "x.safetensors").unlink()
    assert not is_unchanged(loaded)
