"""Files of foreign formats: what is in their header, which wishes are kept, and one dtype on reading."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule, Wishes, load_adapter, save_adapter
from lbm_lora.adapter.adapter_file import plan_files
from lbm_lora.adapter.formats import Encoded, Saved, codec_named
from lbm_lora.errors import OutputError
from lbm_lora.files import Outputs
from lbm_lora.naming import ModuleName, ParamName

METADATA = AdapterMetadata(FORMAT, "d" * 32, "0123abcd", "e" * 32, {"ss_network_dim": "2", "note": "Größe"})
TO_Q, NORM = ModuleName("mid_block.attentions.0.transformer_blocks.0.attn1.to_q"), "mid_block.resnets.0.norm1"
LORA = Adapter(
    {TO_Q: LoraModule(TO_Q, torch.ones(2, 3), torch.ones(4, 2), 1.5)},
    {ParamName(f"{NORM}.weight"): torch.ones(3), ParamName("conv_in.bias"): torch.full((3,), 2.0)},
    METADATA,
    "denoiser.",
)


def test_the_header_names_the_format_and_no_reader_takes_the_file_for_a_native_one(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    assert save_adapter(LORA, path, format="comfyui") == Saved(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["lbm_lora_export"] == "comfyui 1"
    assert "lbm_lora_format" not in header
    assert header["ss_network_dim"] == "2"
    assert load_adapter(path).metadata == METADATA


def test_factors_in_8_bits_are_expanded(tmp_path: Path) -> None:
    eight_bit = LORA.cast(torch.int8)
    found = load_adapter(eight_bit.save(tmp_path / "x.safetensors", "comfyui"))
    module, original = found.modules[TO_Q], eight_bit.modules[TO_Q]
    assert torch.equal(module.up, original.up)
    assert module.up.dtype == found.dense[ParamName("conv_in.bias")].dtype == torch.float32
    assert found.dtype is None


def test_tensors_of_several_dtypes_get_the_one_that_holds_them_all(tmp_path: Path) -> None:
    path = LORA.save(tmp_path / "x.safetensors", "comfyui")
    save_file({k: t.half() if k.endswith("diff_b") else t.bfloat16() for k, t in load_file(path).items()}, path)
    found = load_adapter(path)
    assert {t.dtype for t in (found.modules[TO_Q].up, *found.dense.values())} == {torch.float32}
    assert torch.equal(found.dense[ParamName("conv_in.bias")], LORA.dense[ParamName("conv_in.bias")])


@pytest.mark.parametrize("format", ["native", "comfyui"])
@pytest.mark.parametrize(
    ("wishes", "dropped"),
    [
        (Wishes(biases="drop"), ("conv_in.bias",)),
        (Wishes(norms="drop"), (f"{NORM}.weight",)),
        (Wishes("drop", "drop"), (f"{NORM}.weight", "conv_in.bias")),
    ],
)
def test_what_is_to_be_dropped_is_dropped_and_named(
    tmp_path: Path, format: str, wishes: Wishes, dropped: tuple[str, ...]
) -> None:
    path = tmp_path / "x.safetensors"
    measured = replace(LORA, metadata=replace(LORA.metadata, facts={"lbm_lora_errors": "{}", "note": "kept"}))
    saved = save_adapter(measured, path, format="native" if format == "native" else "comfyui", wishes=wishes)
    assert saved.dropped == dropped
    found = load_adapter(path)
    assert set(found.dense) == LORA.dense.keys() - set(dropped)
    assert ("lbm_lora_errors" in found.metadata.facts, found.metadata.facts["note"]) == (not dropped, "kept")


def test_a_format_with_a_config_is_a_folder(tmp_path: Path) -> None:
    wishes, folder = Wishes("drop", "drop"), tmp_path / "lora_1.5"
    assert save_adapter(LORA, folder, format="peft", wishes=wishes).path == folder
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(OutputError, match=r"the format peft is a folder of two files\. Give the path of a folder\."):
        save_adapter(LORA, tmp_path / "lora.safetensors", format="peft", wishes=wishes)


def test_a_rerun_replaces_both_files_of_a_folder_but_no_config_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")

    def check() -> None:
        outputs = Outputs()
        plan_files(outputs, folder, "peft")
        outputs.check()

    with pytest.raises(OutputError, match=r"adapter_config\.json exists, and lbm-lora did not write it"):
        check()
    save_adapter(LORA, folder, format="peft", wishes=Wishes("drop", "drop"))
    check()


def test_notes_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = replace(codec_named("comfyui"), encode=lambda *_: Encoded({}, notes=("Two keys were rebuilt.",)))
    monkeypatch.setattr("lbm_lora.adapter.adapter_file.codec_named", lambda name: codec)
    with pytest.warns(UserWarning, match=r"x\.safetensors: Two keys were rebuilt\."):
        LORA.save(tmp_path / "x.safetensors", "comfyui")
