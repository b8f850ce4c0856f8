"""The workflow `data pack`."""

from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.bundled import PAIRS
from lbm_lora.cli.main import parse
from lbm_lora.configs.data_check import CheckConfig
from lbm_lora.configs.data_pack import PackConfig
from lbm_lora.errors import ConfigError, DataError, OutputError
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.workflows import data_check, data_pack


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


def test_a_shard_size_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"shard_mb and shard_count must be 1 or more"):
        data_pack.run(PackConfig(folder=PAIRS, to=Path("nowhere"), shard_mb=0))


def test_incomplete_pairs_are_left_out_or_stop_the_packing(pairs: Path, tmp_path: Path) -> None:
    (pairs / "milk-00-dawn-to-forest.target.png").unlink()
    (pairs / "milk-01-lobby-to-dawn.mask.png").unlink()
    with pytest.raises(DataError, match=r"1 of 12 samples cannot be used \(8\.3 %\): milk-00-dawn-to-forest"):
        data_pack.run(PackConfig(folder=pairs, to=tmp_path / "shards"))
    assert not (tmp_path / "shards").exists()
    made = data_pack.run(PackConfig(folder=pairs, to=tmp_path / "shards", max_corrupt=0.1))
    assert (made.pairs, made.masks) == (11, 10)
    assert [item.key for item in made.skipped] == ["milk-00-dawn-to-forest"]
    with pytest.raises(OutputError, match=r"shards already exists"):
        data_pack.run(PackConfig(folder=pairs, to=tmp_path / "shards", max_corrupt=0.1))


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "/x", "a{0..9}", "a\x1bb"])
def test_a_name_that_is_not_one_of_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^name .* must be a file name: no folders, no braces"):
        data_pack.run(PackConfig(folder=PAIRS, to=tmp_path / "deep/shards", name=name))
    assert list(tmp_path.iterdir()) == []


def test_overwrite_adds_to_a_folder(pairs: Path, tmp_path: Path) -> None:
    made = data_pack.run(PackConfig(folder=pairs, to=tmp_path / "shards", shard_count=6))
    one, other = made.shards
    wanted = one.read_bytes()
    one.write_bytes(b"somebody's")
    (tmp_path / "shards/more").mkdir()
    (tmp_path / "shards/more/notes.txt").write_text("kept")
    again = PackConfig(folder=pairs, to=tmp_path / "shards", shard_count=6, overwrite=True)
    assert data_pack.run(again).shards == (one, other)
    assert one.read_bytes() == wanted
    assert sorted(path.name for path in (tmp_path / "shards").rglob("*")) == ["more", "notes.txt", one.name, other.name]


def test_shards_of_an_earlier_data_set_are_named(pairs: Path, tmp_path: Path) -> None:
    given = PackConfig(folder=pairs, to=tmp_path / "shards", shard_count=4)
    data_pack.run(given)
    (tmp_path / "shards/pairs-mine.tar").write_bytes(b"theirs")
    with pytest.warns(
        LbmLoraWarning, match=r"of an earlier data set: pairs-000001\.tar, pairs-000002\.tar\. Remove them"
    ):
        data_pack.run(replace(given, shard_count=12, overwrite=True))


def test_a_shard_is_never_a_file_to_pack(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    picture = next(pairs.glob("*.source.png"))
    (tmp_path / "shards/pairs-000000.tar").hardlink_to(picture)
    before = picture.read_bytes()
    with pytest.raises(OutputError, match="an input of this command"):
        data_pack.run(PackConfig(folder=pairs, to=tmp_path / "shards", overwrite=True))
    assert picture.read_bytes() == before


def test_names_with_control_characters_are_left_out(pairs: Path, tmp_path: Path) -> None:
    for role in ("source", "target"):
        (pairs / f"a\x1b.{role}.png").hardlink_to(next(pairs.glob(f"*.{role}.png")))
    made = data_pack.run(PackConfig(folder=pairs, to=tmp_path / "shards", max_corrupt=0.1))
    assert [item.reason for item in made.skipped] == ["its name holds control characters, or is not UTF-8"]


def test_the_command_line() -> None:
    pack, _ = parse("data pack", ["FOLDER", "--to", "DIR", "--shard_mb", "3"])
    assert (pack.folder, pack.to, pack.shard_mb) == (Path("FOLDER"), Path("DIR"), 3)
