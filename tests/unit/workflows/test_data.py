"""The workflows `data pack` and `data check`."""

from pathlib import Path

import pytest
import tyro
import yaml

from lbm_lora.bundled import PAIRS
from lbm_lora.errors import ConfigError, DataError, OutputError
from lbm_lora.workflows import data_check, data_pack
from lbm_lora.workflows.data_check import CheckConfig
from lbm_lora.workflows.data_pack import PackConfig


def copied(folder: Path) -> Path:
    """The bundled pairs in a folder of their own."""
    folder.mkdir()
    for path in PAIRS.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_what_is_packed_is_sound(tmp_path: Path) -> None:
    made = data_pack.run(PackConfig(folder=PAIRS, to=tmp_path / "shards", name="lemon", shard_count=7))
    assert made.pattern == (tmp_path / "shards/lemon-{000000..000001}.tar").as_posix()
    assert made.shards == tuple(tmp_path / f"shards/lemon-00000{number}.tar" for number in range(2))
    assert (made.pairs, made.masks, made.skipped) == (12, 12, ())
    assert made.nbytes == sum(path.stat().st_size for path in made.shards)
    result = data_check.run(CheckConfig(data=(made.pattern,), mask_key="mask.png", image_size=(128,), batch_size=4))
    (split,) = result.splits
    assert (split.split, split.found.pairs, split.found.steps, split.found.masks) == ("train", 12, 3, 12)
    assert result.failures == ()


def test_a_folder_is_checked_as_it_is(tmp_path: Path) -> None:
    folder = data_check.run(CheckConfig(data=(str(PAIRS),), image_size=(128,))).splits[0].found
    assert (folder.where, folder.pairs, folder.masks) == (str(PAIRS), 12, 0)


def test_too_many_corrupt_samples_fail_the_check_and_are_all_named(tmp_path: Path) -> None:
    folder = copied(tmp_path / "pairs")
    broken = sorted(folder.glob("milk-0*.source.png"))
    for path in broken:
        path.write_bytes(path.read_bytes()[:5000])
    config = CheckConfig(data=(str(folder),), image_size=(128,), max_corrupt=0.4)
    result = data_check.run(config)
    assert [item.key for item in result.splits[0].found.skipped] == [
        path.name.removesuffix(".source.png") for path in broken
    ]
    assert len(broken) == 5
    (failure,) = result.failures
    assert str(failure) == f"{folder}: 41.7 % of the samples cannot be used, more than the 40 % of max_corrupt."
    assert data_check.run(CheckConfig(data=(str(folder),), image_size=(128,), max_corrupt=0.42)).failures == ()


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


@pytest.mark.parametrize("config", [CheckConfig(), CheckConfig(data=("a",), path_config=Path("b.yaml"))])
def test_data_or_a_training_file(config: CheckConfig) -> None:
    with pytest.raises(ConfigError, match=r"name the data to check, a folder or shards, or a training file"):
        data_check.run(config)


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match=r"command line: image_size\.0: "):
        data_check.run(CheckConfig(data=(str(PAIRS),), image_size=(8,)))
    with pytest.raises(ConfigError, match=r"allow_pipe"):
        data_check.run(CheckConfig(data=("pipe:cat t.tar",)))
    with pytest.raises(ConfigError, match=r"shard_mb and shard_count must be 1 or more"):
        data_pack.run(PackConfig(folder=PAIRS, to=Path("nowhere"), shard_mb=0))


def test_incomplete_pairs_are_left_out_or_stop_the_packing(tmp_path: Path) -> None:
    folder = copied(tmp_path / "pairs")
    (folder / "milk-00-dawn-to-forest.target.png").unlink()
    (folder / "milk-01-lobby-to-dawn.mask.png").unlink()
    with pytest.raises(DataError, match=r"1 of 12 samples cannot be used \(8\.3 %\): milk-00-dawn-to-forest"):
        data_pack.run(PackConfig(folder=folder, to=tmp_path / "shards"))
    assert not (tmp_path / "shards").exists()
    made = data_pack.run(PackConfig(folder=folder, to=tmp_path / "shards", max_corrupt=0.1))
    assert (made.pairs, made.masks) == (11, 10)
    assert [item.key for item in made.skipped] == ["milk-00-dawn-to-forest"]
    with pytest.raises(OutputError, match=r"shards is there already"):
        data_pack.run(PackConfig(folder=folder, to=tmp_path / "shards", max_corrupt=0.1))


def test_the_command_lines() -> None:
    pack = tyro.cli(PackConfig, args=["FOLDER", "--to", "DIR", "--shard_mb", "3"], use_underscores=True)
    assert (pack.folder, pack.to, pack.shard_mb) == (Path("FOLDER"), Path("DIR"), 3)
    check = tyro.cli(CheckConfig, args=["a.tar", "b.tar", "--image_size", "256", "512"], use_underscores=True)
    assert (check.data, check.image_size) == (("a.tar", "b.tar"), (256, 512))
    check = tyro.cli(CheckConfig, args=["--path_config", "x.yaml"], use_underscores=True)
    assert (check.data, check.path_config) == ((), Path("x.yaml"))
