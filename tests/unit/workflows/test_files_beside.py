"""Files that belong to a LoRA: those of an earlier one are named."""

import warnings
from pathlib import Path

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.files import MARK, together, write_text
from lbm_lora.naming import ModuleName
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.workflows.files_beside import twin_path, warn_of_others


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA with a sidecar and two twins."""
    name = ModuleName("conv_in")
    adapter = Adapter({name: LoraModule(name, torch.ones(2, 4, 3, 3), torch.ones(8, 2, 1, 1), 3.0)}, {})
    path = adapter.save(tmp_path / "x.safetensors")
    adapter.save(twin_path(path, "comfyui"), "comfyui")
    adapter.save(twin_path(path, "peft"), "peft")
    (tmp_path / "x_config.yaml").write_text(f"# {MARK}\nextraction_method: lbm_lora\n")
    return path


def test_what_is_of_an_earlier_lora_is_named(lora: Path) -> None:
    with pytest.warns(LbmLoraWarning) as warned:
        warn_of_others(lora)
    assert [str(one.message) for one in warned] == [
        f"{lora.parent / name} belongs to an earlier x.safetensors. Remove it."
        for name in ("x_config.yaml", "x.comfyui.safetensors", "x.peft/adapter_model.safetensors")
    ]


def test_the_sidecar_of_a_native_file_is_none_of_the_folder_beside_it(lora: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_others(tmp_path / "x.peft")


def test_a_folder_is_no_earlier_one_of_its_own_name(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `convert --to peft --save_to x.peft` writes one, or `--save_to .` in it."""
    folder = twin_path(lora, "peft")
    monkeypatch.chdir(folder)
    (lora.parent / "x_config.yaml").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (folder, Path()):
            warn_of_others(path)


def test_what_is_replaced_and_files_of_others_are_not(lora: Path) -> None:
    lora.with_name("x.kohya.safetensors").write_bytes(b"theirs")
    with warnings.catch_warnings(), together():
        warnings.simplefilter("error")
        write_text(lora.with_name("x_config.yaml"), "new")
        warn_of_others(lora, also=["comfyui", "peft"])
