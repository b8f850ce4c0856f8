"""Which file of a folder is its LoRA."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule
from lbm_lora.adapter.adapter_file import lora_digest, lora_in
from lbm_lora.errors import AdapterError, CheckpointError
from lbm_lora.naming import ModuleName

LORA = Adapter(
    {ModuleName("a"): LoraModule(ModuleName("a"), torch.ones(2, 3), torch.ones(4, 2), 2.0)},
    {},
    AdapterMetadata(FORMAT),
    "denoiser.",
)
OTHER = {"layer.weight": torch.ones(2)}


def write(folder: Path, name: str) -> None:
    if name == "native.safetensors" or name == "native_2.safetensors":
        LORA.save(folder / name)
    elif name == "pytorch_lora_weights.safetensors":
        LORA.save(folder / name, "diffusers")
    elif name == "adapter_model.safetensors":
        LORA.save(folder, "peft")
    elif name.endswith(".bin"):
        torch.save({"base_model.model.a.lora_A.weight": torch.ones(2, 3)}, folder / name)
    else:
        save_file(OTHER, folder / name)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["adapter_model.safetensors"], "adapter_model.safetensors"),
        (["adapter_model.safetensors", "adapter_model.bin"], "adapter_model.safetensors"),
        (["adapter_model.bin"], "adapter_model.bin"),
        (["pytorch_lora_weights.safetensors", "model.safetensors"], "pytorch_lora_weights.safetensors"),
        (["pytorch_lora_weights.safetensors", "native.safetensors"], "native.safetensors"),
        (["native.safetensors"], ""),
        (["model.safetensors", "model_2.safetensors"], ""),
    ],
)
def test_a_native_lora_comes_first_then_known_names(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        write(tmp_path, name)
    assert lora_in(tmp_path) == tmp_path / found


def test_several_native_loras_are_refused(tmp_path: Path) -> None:
    for name in ("native.safetensors", "native_2.safetensors"):
        write(tmp_path, name)
    with pytest.raises(AdapterError, match=r"holds several LoRAs: native\.safetensors, native_2\.safetensors\. Name"):
        lora_in(tmp_path)


def test_the_digest_is_of_all_that_is_read(tmp_path: Path) -> None:
    LORA.save(tmp_path / "peft", "peft")
    folder, weights = tmp_path / "peft", tmp_path / "peft" / "adapter_model.safetensors"
    before = lora_digest(folder), lora_digest(weights)
    (folder / "notes.txt").write_text("mine")
    assert (lora_digest(folder), lora_digest(weights)) == before
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha":  '))
    assert lora_digest(folder) != before[0]
    assert lora_digest(weights) != before[1]
    native = LORA.save(folder / "native.safetensors")
    with pytest.raises(CheckpointError, match=r"gone was moved or removed while it was in use"):
        lora_digest(folder / "gone")
    alone = lora_digest(native)
    config.unlink()
    assert lora_digest(native) == alone, "it is not read with it"
    assert lora_digest(native.rename(folder / "renamed.safetensors")) == alone
