"""The files behind a path that a command is given."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.input_files import files_behind, has_one_checkpoint
from lbm_lora.ownership import BASE, MARK_KEY, RUN_LINE


def names(path: Path) -> set[str]:
    """Names of the existing files behind a path, relative to its parent folder."""
    return {one.relative_to(path.parent).as_posix() for one in files_behind(path) if one.is_file()}


def test_a_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "config.yaml").touch()
    assert names(tmp_path / "a.png") == {"a.png"}


def test_twins_and_the_configuration_of_a_checkpoint(tmp_path: Path) -> None:
    for name in ("base.ckpt", "base.safetensors", "other.ckpt", "config.yaml", "more.yaml"):
        (tmp_path / name).write_text("x")
    assert names(tmp_path / "base.ckpt") == {"base.ckpt", "base.safetensors", "config.yaml"}
    (tmp_path / "config.yaml").write_text(RUN_LINE)
    assert names(tmp_path / "base.safetensors") == {"base.ckpt", "base.safetensors", "more.yaml"}


@pytest.mark.parametrize(("kind", "is_twin"), [(BASE, True), ("fused checkpoint", False)])
def test_the_twin_of_a_base_in_other_containers(tmp_path: Path, kind: str, *, is_twin: bool) -> None:
    (tmp_path / "m.pth").write_text("x")
    (tmp_path / "m.safetensors").write_text(f'{{"__metadata__":{{"{MARK_KEY}":"{kind}"}}}}')
    assert ("m.safetensors" in names(tmp_path / "m.pth")) == is_twin


def test_pefts_configuration_beside_weights_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(1)}, tmp_path / "v1.safetensors")
    metadata = {"ss_tag_frequency": "x" * 200_000}
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(1)}, tmp_path / "v2.safetensors", metadata)
    assert names(tmp_path / "v2.safetensors") == {"v2.safetensors", "adapter_config.json"}
    save_file({"lora.a.lora_down": torch.zeros(1)}, tmp_path / "native.safetensors")
    assert names(tmp_path / "v1.safetensors") == {"v1.safetensors", "adapter_config.json"}
    assert names(tmp_path / "native.safetensors") == {"native.safetensors"}


def test_shards_of_an_index(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    for name in ("model-1.safetensors", "model-2.safetensors", "model-3.safetensors", "config.yaml"):
        (tmp_path / name).write_text("x")
    assert names(index) == {index.name, "model-1.safetensors", "model-2.safetensors", "config.yaml"}


def test_a_folder_of_networks(tmp_path: Path) -> None:
    for name in (
        "unet/model.safetensors",
        "vae/config.json",
        "model_index.json",
        "lbm.yaml",
        "notes.txt",
        "x_config.yaml",
    ):
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_text("x")
    assert names(tmp_path / "m") == {
        "m/unet/model.safetensors",
        "m/vae/config.json",
        "m/model_index.json",
        "m/lbm.yaml",
    }


@pytest.mark.parametrize(
    ("held", "is_one"),
    [
        (["model.safetensors"], True),
        (["model.safetensors", "ema.ckpt"], True),
        (["a.ckpt", "b.ckpt"], False),
        (["adapter_model.safetensors"], True),
        (["adapter_model.bin"], True),
        (["lora.safetensors", "pytorch_lora_weights.safetensors"], True),
        (["a.safetensors", "b.safetensors"], False),
        (["a.safetensors", "model.safetensors.index.json"], False),
        ([], False),
    ],
)
def test_a_folder_that_stands_for_one_checkpoint(tmp_path: Path, held: list[str], *, is_one: bool) -> None:
    for name in held:
        (tmp_path / name).touch()
    assert has_one_checkpoint(tmp_path) == is_one
    assert not has_one_checkpoint(tmp_path / "none")
