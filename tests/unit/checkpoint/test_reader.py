"""One way to tensors by name, whatever the container and however many files."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import CheckpointError

Save = Callable[[str, Mapping[str, Tensor]], Path]


def shards(save: Save, name: str, **files: Mapping[str, Tensor]) -> Path:
    """An index and its shards; the path of the index."""
    paths = {shard: save(f"{name}-{shard}.safetensors", tensors) for shard, tensors in files.items()}
    weight_map = {key: paths[shard].name for shard, tensors in files.items() for key in tensors}
    index = paths["one"].with_name(f"{name}.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def test_shards_are_one_checkpoint(save: Save) -> None:
    index = shards(save, "m", one={"a": torch.zeros(2)}, two={"b": torch.ones(2)})
    for path in (index, index.parent):
        with open_checkpoint(path) as found:
            assert list(found.specs) == ["a", "b"]
            assert torch.equal(found.read("b"), torch.ones(2))
            assert [file.name for file in found.files] == ["m-one.safetensors", "m-two.safetensors"]
            assert found.path == path


def test_a_shard_that_is_missing_is_named(save: Save) -> None:
    index = shards(save, "m", one={"a": torch.zeros(2)}, two={"b": torch.ones(2)})
    (index.parent / "m-two.safetensors").unlink()
    assert error_of(index) == f"{index} lists missing shards: m-two.safetensors. Download them to its folder."


def test_a_key_in_two_shards_is_named(save: Save) -> None:
    index = shards(save, "m", one={"a": torch.zeros(2)}, two={"model.denoiser.b": torch.ones(2), "c": torch.ones(2)})
    save("m-one.safetensors", {"a": torch.zeros(2), "denoiser.b": torch.zeros(2)})
    assert error_of(index) == f"{index}: denoiser.b is in more than one shard. Remove one of them."


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "\xff"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(text, encoding="latin-1")
    assert error_of(index) == f"{index} is not an index of shards: it has no readable `weight_map`."


def test_a_folder_stands_for_the_one_checkpoint_in_it(save: Save) -> None:
    path = save("one/model.safetensors", {"a": torch.ones(2)})
    save("one/model.ckpt", {"b": torch.ones(2)})
    assert list(open_checkpoint(path.parent).specs) == ["a"]
    path = save("two/model.ckpt", {"b": torch.ones(2)})
    assert list(open_checkpoint(path.parent).specs) == ["b"]


def test_a_folder_with_several_or_none(save: Save, tmp_path: Path) -> None:
    for name in ("b", "a"):
        save(f"several/{name}.safetensors", {"a": torch.ones(2)})
    several = tmp_path / "several"
    text = f"{several} holds several checkpoints: a.safetensors, b.safetensors. Name one."
    assert error_of(several) == text
    (tmp_path / "none").mkdir()
    assert error_of(tmp_path / "none") == f"{tmp_path / 'none'} holds no .safetensors or .ckpt file."


def test_a_path_that_is_not_there_names_its_neighbours(save: Save, tmp_path: Path) -> None:
    missing = tmp_path / "no.pth"
    assert error_of(missing) == f"{missing} does not exist. The folder {tmp_path} is empty."
    save("tuned.ckpt", {"a": torch.ones(2)})
    save("base.safetensors", {"a": torch.ones(2)})
    assert error_of(missing) == f"{missing} does not exist. The folder {tmp_path} has base.safetensors, tuned.ckpt."
    deeper = tmp_path / "no" / "x.safetensors"
    assert error_of(deeper) == f"{deeper} does not exist. There is no folder {tmp_path / 'no'}."
    close = tmp_path / "tune.ckpt"
    assert error_of(close) == f"{close} does not exist. Did you mean {tmp_path / 'tuned.ckpt'}?"


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.safetensors.index.json"])
def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    monkeypatch.setattr("zipfile.is_zipfile", refuse)
    assert error_of(path) == f"{path} cannot be read: Permission denied."


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_tensors_outlive_the_reader_and_its_file(save: Save, name: str) -> None:
    path = save(name, {"a": torch.arange(1000.0)})
    with open_checkpoint(path) as found:
        tensor = found.read("a")
    del found
    path.unlink()
    assert torch.equal(tensor, torch.arange(1000.0))


def test_the_component_is_the_denoiser_of_an_lbm(save: Save) -> None:
    tensors = {
        "model.denoiser.a.weight": torch.ones(2),
        "model.vae.b": torch.ones(1),
        "model.num_iterations": torch.ones(1),
    }
    with open_checkpoint(save("a.ckpt", tensors)) as found:
        denoiser = found.component()
        assert (denoiser.prefix, list(denoiser), len(denoiser)) == ("denoiser.", ["a.weight"], 1)
        assert "a.weight" in denoiser
        assert "vae.b" not in denoiser
        assert torch.equal(denoiser.read(next(iter(denoiser))), torch.ones(2))
        assert list(found.component("vae.")) == ["b"]
        assert len(found.component("")) == 3


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("denoiser.a.lora_up.weight", "is a LoRA, not a checkpoint. "),
        ("base_model.model.a.lora_A.weight", "is a PEFT adapter, not a checkpoint. "),
    ],
)
def test_a_lora_in_the_place_of_a_checkpoint_is_named(save: Save, key: str, text: str) -> None:
    path = save("a.safetensors", {key: torch.ones(2)})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path).component()
    assert str(caught.value) == f"{path} {text}Give the model's checkpoint here; it goes with lora_path."


def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    for name, key in (("one", "a"), ("two", "b")):
        save_file({key: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert set(open_checkpoint(index).specs) == {"a", "b"}
    index.write_text(json.dumps({"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(index)
    assert str(caught.value) == (
        f"{index} does not belong to its shards: a is not in two.safetensors, b is not in one.safetensors. "
        "Download the index and its shards again."
    )


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_fifo_does_not_hang(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"x.{suffix}")
    with pytest.raises(CheckpointError, match=r"cannot be read: Not a regular file\.$"):
        open_checkpoint(tmp_path / f"x.{suffix}")
