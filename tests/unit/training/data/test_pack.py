"""Shards out of pairs: read back by WebDataset, the same bytes each time, whole or not there."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from lbm_lora.bundled import PAIRS
from lbm_lora.errors import DataError
from lbm_lora.shards.tar import expand_shards, read_shard
from lbm_lora.training.data.pack import pattern_of, shards_of, write_shards
from lbm_lora.training.data.pairs import Keys, PairIndex, find_pairs, make_index

KEYS = Keys(mask="mask.png", mask_optional=True)


def indexed(folder: Path) -> PairIndex:
    return make_index(find_pairs(folder, KEYS), KEYS)


def packed(folder: Path, to: Path, *, max_bytes: int = 10**9, max_count: int = 100) -> list[Path]:
    index = indexed(folder)
    shards = shards_of(index, to, name="pairs", max_bytes=max_bytes, max_count=max_count)
    write_shards(index, KEYS, shards)
    return list(shards)


def read(shard: Path) -> dict[str, dict[str, bytes]]:
    """By WebDataset's own reader."""
    with shard.open("rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": "", "stream": stream}])))
    return {
        sample["__key__"]: {name: data for name, data in sample.items() if not name.startswith("__")}
        for sample in samples
    }


def test_webdataset_reads_the_files_as_they_are(tmp_path: Path) -> None:
    shards = packed(PAIRS, tmp_path / "out", max_count=5)
    assert [shard.name for shard in shards] == [f"pairs-{number:06d}.tar" for number in range(3)]
    samples = [read(shard) for shard in shards]
    assert [len(shard) for shard in samples] == [5, 5, 2]
    together = {key: parts for shard in samples for key, parts in shard.items()}
    assert together == {
        path.name.removesuffix(".source.png"): {
            f"{role}.png": (PAIRS / path.name.replace(".source.", f".{role}.")).read_bytes()
            for role in ("source", "target", "mask")
        }
        for path in PAIRS.glob("*.source.png")
    }


def test_the_same_pairs_give_the_same_bytes(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    one = packed(write_pairs("a"), tmp_path / "one")
    other = packed(write_pairs("b"), tmp_path / "two")  # written later, elsewhere
    assert [shard.read_bytes() for shard in one] == [shard.read_bytes() for shard in other]
    with tarfile.open(one[0]) as tar:
        assert {(info.mtime, info.uname, info.gname, info.mode) for info in tar} == {(0, "", "", 0o644)}


def test_shards_are_cut_by_size(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_pairs(count=5)
    size = sum(path.stat().st_size for path in folder.iterdir()) // 5
    shards = packed(folder, tmp_path / "out", max_bytes=int(2.5 * size))
    assert [len(read(shard)) for shard in shards] == [2, 2, 1]
    assert [len(read(shard)) for shard in packed(folder, tmp_path / "small", max_bytes=1)] == [1] * 5


def test_names_that_become_the_same_are_refused(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_pairs(count=1)
    for name in ("a.b", "a_b"):
        for role in ("source", "target"):
            (folder / f"{name}.{role}.png").write_bytes((folder / f"000.{role}.png").read_bytes())
    with pytest.raises(DataError, match=r"names in shards cannot have dots, and .* are the same: a\.b, a_b\."):
        packed(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [1, 12])
def test_the_pattern_stands_for_all_shards(count: int) -> None:
    shards = [Path(f"out/my-pairs-{number:06d}.tar") for number in range(count)]
    assert expand_shards([pattern_of(shards)]) == [shard.as_posix() for shard in shards]


def test_pairs_have_the_same_digest_in_a_folder_and_in_shards(tmp_path: Path) -> None:
    """So that a training goes on when its pairs have been packed."""
    before = indexed(PAIRS)
    shards = packed(PAIRS, tmp_path / "out", max_count=5)
    found = [one for shard in shards for one in read_shard(shard, shard.name)]
    assert make_index(found, KEYS).digest == before.digest
