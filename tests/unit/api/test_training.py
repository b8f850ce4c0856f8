"""`train`, `pack_data`, `check_data`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import lbm_lora
from lbm_lora import Adapter, ConfigError
from standins import Lbm


@pytest.fixture
def pairs(images: list[Image.Image], tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, image in zip(("a.source", "a.target"), images, strict=False):
        image.save(folder / f"{name}.png")
        image.save(folder / f"b{name[1:]}.png")
    return folder


@pytest.fixture
def keys(lbm: Lbm, pairs: Path, tmp_path: Path) -> dict[str, Any]:
    """Of a training of one step."""
    return {
        "train_folder": pairs,
        "base_model_path": lbm.base,
        "lora_rank": 2,
        "lora_target_modules": ["attn1"],
        "batch_size": 1,
        "image_size": 64,
        "max_steps": 1,
        "logger": "none",
        "device": "cpu",
        "precision": "32",
        "base_dtype": "float",
        "save_ckpt_path": tmp_path / "run",
    }


def test_a_training_by_options_alone(keys: dict[str, Any], tmp_path: Path) -> None:
    result = lbm_lora.train(**keys)
    assert (result.step, result.folder) == (1, tmp_path / "run")
    assert result.last is not None
    assert {module.rank for module in Adapter.load(result.last).modules.values()} == {2}


def test_options_take_the_place_of_the_keys_of_a_file(keys: dict[str, Any], tmp_path: Path) -> None:
    values = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({**values, "image_size": [64], "lora_rank": 0}))
    with pytest.raises(
        ConfigError, match=r"train\.yaml: lora_rank: Input should be greater than or equal to 1, got 0\."
    ):
        lbm_lora.train(tmp_path / "train.yaml")
    with pytest.raises(ConfigError, match=r"train\.yaml: max_steps: .* got -1\."):
        lbm_lora.train(tmp_path / "train.yaml", lora_rank=1, max_steps=-1)
    with pytest.raises(ConfigError, match=r"^train: lora_rank: Input should be a valid integer, got 'x'\."):
        lbm_lora.train({**values, "image_size": [64], "lora_rank": "x"})
    wrong: Any = {"lora_rnk": 2}
    with pytest.raises(TypeError, match=r"^train\(\) got an unexpected keyword argument 'lora_rnk'\. Did you mean"):
        lbm_lora.train(**wrong)


def test_the_file_of_a_copied_run_does_not_train_over_the_first_one(keys: dict[str, Any], tmp_path: Path) -> None:
    lbm_lora.train(**keys)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    first = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"the folder was copied or moved\."):
        lbm_lora.train(copy / "config.yaml", max_steps=2)
    assert lbm_lora.train(copy / "config.yaml", max_steps=2, save_ckpt_path=copy).step == 2
    assert {path: path.read_bytes() for path in first} == first


def test_data_are_packed_and_checked(pairs: Path, tmp_path: Path) -> None:
    packed = lbm_lora.pack_data(pairs, str(tmp_path / "shards"), shard_count=1)
    assert (packed.pairs, len(packed.shards)) == (2, 2)
    found = [lbm_lora.check_data(data, image_size=64) for data in (pairs, packed.shards, packed.pattern)]
    assert [one.splits[0].found.pairs for one in found] == [2, 2, 2]
    file = tmp_path / "train.yaml"
    values = {"train_folder": str(pairs), "image_size": [64], "base_model_path": "b.safetensors", "lora_rank": 1}
    file.write_text(yaml.safe_dump(values))
    assert lbm_lora.check_data(file).failures == ()
