"""`lbm_lora.doctor`: the machine, or the config of a command."""

from pathlib import Path

import pytest

import lbm_lora
from lbm_lora import FuseConfig, bundled


def test_the_machine_and_the_needs_of_a_config() -> None:
    assert lbm_lora.doctor().command is None
    model = bundled.TUNED / "model.safetensors"
    found = lbm_lora.doctor(FuseConfig(base_model_path=model, lora_path=(model,), save_to=Path("fused.safetensors")))
    assert found.command is not None
    assert found.command.name == "fuse"
    assert any("not a LoRA" in str(one.remedy) for one in found.command.checks)


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="takes the config of a command, such as ExtractConfig, not str"):
        lbm_lora.doctor("extract")
