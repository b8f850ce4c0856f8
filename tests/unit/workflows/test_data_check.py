"""The workflow `data check`."""

from pathlib import Path

import pytest
import yaml

from lbm_lora.bundled import PAIRS
from lbm_lora.cli.main import parse
from lbm_lora.configs.data_check import CheckConfig
from lbm_lora.configs.data_pack import PackConfig
from lbm_lora.errors import ConfigError
from lbm_lora.workflows import data_check, data_pack


def test_a_folder_is_checked_as_it_is() -> None:
    folder = data_check.run(CheckConfig(data=(str(PAIRS),), image_size=(128,))).splits[0].found
    assert (folder.where, folder.pairs, folder.masks) == (str(PAIRS), 12, 0)


def test_a_folder_of_shards_stands_for_its_shards(tmp_path: Path) -> None:
    made = data_pack.run(PackConfig(folder=PAIRS, to=tmp_path / "shards", shard_count=5))
    (split,) = data_check.run(CheckConfig(data=(str(tmp_path / "shards"),), image_size=(64,))).splits
    assert (split.found.where, split.found.pairs) == (f"{made.shards[0]} and 2 more", 12)


def test_too_many_corrupt_samples_fail_the_check_and_are_all_named(pairs: Path) -> None:
    broken = sorted(pairs.glob("milk-0*.source.png"))
    for path in broken:
        path.write_bytes(path.read_bytes()[:5000])
    config = CheckConfig(data=(str(pairs),), image_size=(128,), max_corrupt=0.4)
    result = data_check.run(config)
    assert [item.key for item in result.splits[0].found.skipped] == [
        path.name.removesuffix(".source.png") for path in broken
    ]
    assert len(broken) == 5
    (failure,) = result.failures
    assert str(failure) == f"{pairs}: 41.7 % of the samples cannot be used, more than the 40 % of max_corrupt."
    assert data_check.run(CheckConfig(data=(str(pairs),), image_size=(128,), max_corrupt=0.42)).failures == ()


def test_both_splits_of_a_training_file(tmp_path: Path) -> None:
    shards = data_pack.run(PackConfig(folder=PAIRS, to=tmp_path / "shards"))
    values = {
        "train_shards": [shards.pattern],
        "validation_folder": str(PAIRS),
        "mask_key": "mask.png",
        "image_size": [64],
        "batch_size": 3,
        "base_model_path": "base.safetensors",
        "lora_rank": 4,
        "flip": True,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    result = data_check.run(CheckConfig(path_config=tmp_path / "train.yaml"))
    assert [(split.split, split.found.where) for split in result.splits] == [
        ("train", shards.pattern),
        ("validation", str(PAIRS)),
    ]
    assert [split.found.steps for split in result.splits] == [4, 4]
    assert result.splits[0].found.buckets[0].width == 64
    assert result.splits[0].found.masks == 12


def test_data_or_a_training_file() -> None:
    with pytest.raises(ConfigError, match=r"^Name the data to check: a folder, shards, or a training file with path_c"):
        CheckConfig()
    with pytest.raises(ConfigError, match=r"^'a' and path_config both name the data\. Give one of them\.$"):
        CheckConfig(data=("a",), path_config=Path("b.yaml"))


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match=r"command line: image_size\.0: "):
        data_check.run(CheckConfig(data=(str(PAIRS),), image_size=(8,)))
    with pytest.raises(ConfigError, match=r"allow_pipe"):
        data_check.run(CheckConfig(data=("pipe:cat t.tar",)))


def test_the_command_line() -> None:
    check, _ = parse("data check", ["a.tar", "b.tar", "--image_size", "256", "512"])
    assert (check.data, check.image_size) == (("a.tar", "b.tar"), (256, 512))
    check, _ = parse("data check", ["--path_config", "x.yaml"])
    assert (check.data, check.path_config) == ((), Path("x.yaml"))
