"""The workflow `data pack`."""

from pathlib import Path

import pytest

from lbm_lora.bundled import PAIRS
from lbm_lora.cli.main import parse
from lbm_lora.configs.data_check import CheckConfig
from lbm_lora.configs.data_pack import PackConfig
from lbm_lora.errors import ConfigError, DataError, OutputError
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


def test_the_command_line() -> None:
    pack, _ = parse("data pack", ["FOLDER", "--to", "DIR", "--shard_mb", "3"])
    assert (pack.folder, pack.to, pack.shard_mb) == (Path("FOLDER"), Path("DIR"), 3)
