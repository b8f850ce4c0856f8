"""`data pack` and `data check`."""

import shutil
from pathlib import Path

import pytest
import yaml

from lbm_lora.bundled import PAIRS
from lbm_lora.errors import ConfigError, DataError, OutputError
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.verbs.data_check import check_data
from lbm_lora.verbs.data_pack import pack_data


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The bundled pairs in a folder of their own."""
    (tmp_path / "pairs").mkdir()
    for path in PAIRS.glob("*.png"):
        shutil.copy(path, tmp_path / "pairs")
    return tmp_path / "pairs"


def test_shards_hold_what_the_folder_holds(tmp_path: Path) -> None:
    made = pack_data(PAIRS, tmp_path / "shards", name="lemon", shard_count=7)
    assert made.pattern == (tmp_path / "shards/lemon-{000000..000001}.tar").as_posix()
    assert (made.pairs, made.masks, made.skipped) == (12, 12, ())
    assert made.nbytes == sum(path.stat().st_size for path in made.shards)
    for data in (PAIRS, made.pattern, list(map(str, made.shards)), tmp_path / "shards"):
        (split,) = check_data(data if isinstance(data, list) else str(data), image_size=64, batch_size=4).splits
        assert (split.found.pairs, split.found.steps) == (12, 3)
    assert check_data(made.pattern, mask_key="mask.png", image_size=64).splits[0].found.masks == 12


def test_incomplete_pairs_are_left_out_or_stop_the_packing(pairs: Path, tmp_path: Path) -> None:
    (pairs / "milk-00-dawn-to-forest.target.png").unlink()
    (pairs / "milk-01-lobby-to-dawn.mask.png").unlink()
    with pytest.raises(DataError, match=r"1 of 12 samples cannot be used \(8\.3 %\): milk-00-dawn-to-forest"):
        pack_data(pairs, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    for role in ("source", "target"):
        (pairs / f"a\x1b.{role}.png").hardlink_to(pairs / f"milk-01-lobby-to-dawn.{role}.png")
    made = pack_data(pairs, tmp_path / "shards", max_corrupt=0.2)
    assert (made.pairs, made.masks) == (11, 10)
    assert {item.key for item in made.skipped} == {"milk-00-dawn-to-forest", "a\x1b"}


@pytest.mark.parametrize("name", ["../x", "a{0..9}"])
def test_a_name_that_is_not_one_of_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^name .* must be a file name: no folders, no braces"):
        pack_data(PAIRS, tmp_path / "deep/shards", name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_needs_overwrite(pairs: Path, tmp_path: Path) -> None:
    to = tmp_path / "shards"
    made = pack_data(pairs, to, shard_count=4)
    (to / "notes.txt").write_text("kept")
    with pytest.raises(OutputError, match="already exists"):
        pack_data(pairs, to)
    with pytest.warns(LbmLoraWarning, match=r"earlier data set: pairs-000001\.tar, pairs-000002\.tar\. Remove them"):
        pack_data(pairs, to, overwrite=True)
    assert {path.name for path in to.iterdir()} == {"notes.txt", *(path.name for path in made.shards)}
    picture = next(pairs.glob("*.source.png"))
    before = picture.read_bytes()
    made.shards[0].unlink()
    made.shards[0].hardlink_to(picture)
    with pytest.raises(OutputError, match="an input of this command"):
        pack_data(pairs, to, overwrite=True)
    assert picture.read_bytes() == before


def test_too_many_corrupt_samples_fail_the_check_and_are_all_named(pairs: Path) -> None:
    broken = sorted(pairs.glob("milk-0*.source.png"))
    for path in broken:
        path.write_bytes(path.read_bytes()[:5000])
    result = check_data(str(pairs), image_size=64, max_corrupt=0.4)
    names = [path.name.removesuffix(".source.png") for path in broken]
    assert [item.key for item in result.splits[0].found.skipped] == names
    (failure,) = result.failures
    assert str(failure) == f"{pairs}: 41.7 % of the samples cannot be used, more than the 40 % of max_corrupt."


def test_both_splits_of_a_training_file(tmp_path: Path) -> None:
    values = {
        "train_folder": str(PAIRS),
        "validation_folder": str(PAIRS),
        "mask_key": "mask.png",
        "image_size": [64],
        "batch_size": 3,
        "base_model_path": "base.safetensors",
        "lora_rank": 4,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    result = check_data(path_config=tmp_path / "train.yaml")
    assert [(one.split, one.found.steps, one.found.masks) for one in result.splits] == [
        ("train", 4, 12),
        ("validation", 4, 12),
    ]


def test_the_data_are_named_once() -> None:
    with pytest.raises(ConfigError, match=r"^Name the data to check: a folder, shards, or a training file with path_c"):
        check_data()
    with pytest.raises(ConfigError, match=r"^'a' and path_config both name the data\. Give one of them\.$"):
        check_data("a", path_config=Path("b.yaml"))
