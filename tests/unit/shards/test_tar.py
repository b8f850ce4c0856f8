"""Reading shards by their headers: the samples that WebDataset itself gives, and what is said of damage."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from lbm_lora.errors import DataError
from lbm_lora.shards.tar import expand_shards, read_shard


def test_samples_and_bytes_are_those_of_webdataset(write_shard: Callable[..., Path]) -> None:
    samples = {
        "000": {"source.JPG": b"one", "target.jpg": b"two", "json": b"{}"},
        "a.b/001": {"target.jpg": b"four", "source.jpg": b"three"},
        "002": {"source.jpg": b""},
    }
    shard = write_shard("train-000.tar", samples)
    ours = {item.key: {name: part.read() for name, part in item.parts.items()} for item in read_shard(shard, "t")}
    with shard.open("rb") as stream:
        read = list(group_by_keys(tar_file_expander([{"url": "t", "stream": stream}])))
    theirs = {
        f"t/{sample['__key__']}": {name: data for name, data in sample.items() if not name.startswith("__")}
        for sample in read
    }
    assert ours == theirs
    assert list(ours) == ["t/000", "t/a.b/001", "t/002"]
    assert ours["t/000"] == {"source.jpg": b"one", "target.jpg": b"two", "json": b"{}"}


def test_a_name_that_comes_again_is_a_problem(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("z/000.source.jpg", "z/001.source.jpg", "z/000.source.jpg", "./z/001.source.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    problems = [found.problem for found in read_shard(tmp_path / "a.tar", "a")]
    assert problems == ["", "", *["another sample of the shard has its name"] * 2]


def test_long_names_folders_and_meta_members(tmp_path: Path) -> None:
    long = "x" * 150
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (
            ("__info__/a.jpg", b"meta"),
            ("sub", None),
            (f"sub/{long}.jpg", b"1234"),
            ("noextension", b"5"),
        ):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    (found,) = read_shard(tmp_path / "a.tar", "a")
    assert found.key == f"a/sub/{long}"
    assert found.parts["jpg"].read() == b"1234"
    assert found.problem == ""


def test_a_shard_that_was_cut_names_the_sample_and_the_rest(write_shard: Callable[..., Path]) -> None:
    shard = write_shard("a.tar", {f"{i:03d}": {"source.jpg": bytes(1000), "target.jpg": bytes(1000)} for i in range(4)})
    whole = shard.read_bytes()
    member = 512 + 1024
    shard.write_bytes(whole[: 3 * member + 700])  # within the target of 001
    *samples, rest = read_shard(shard, "a.tar")
    assert [(item.key, item.problem) for item in samples] == [
        ("a.tar/000", ""),
        ("a.tar/001", "the shard ends within target.jpg"),
    ]
    end = 3 * member + 700
    assert rest.key == "a.tar"
    assert rest.problem == f"the shard ends or is damaged at byte {end}; the rest is lost"


def test_damage_in_the_middle_is_noticed(write_shard: Callable[..., Path]) -> None:
    shard = write_shard("a.tar", {f"{i:03d}": {"source.jpg": bytes(1000)} for i in range(4)})
    data = bytearray(shard.read_bytes())
    data[2 * 1536 : 2 * 1536 + 512] = b"\xff" * 512  # the header of 002
    shard.write_bytes(data)
    found = list(read_shard(shard, "a.tar"))
    assert [item.key for item in found] == ["a.tar/000", "a.tar/001", "a.tar"]
    assert "damaged at byte 3072" in found[-1].problem


def test_a_size_beyond_every_disk_is_noticed(write_shard: Callable[..., Path]) -> None:
    shard = write_shard("a.tar", {f"{i:03d}": {"source.jpg": bytes(1000)} for i in range(2)})
    head = bytearray(shard.read_bytes())
    head[124:136] = b"\x80" + b"\xff" * 11  # of the first member
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head[:512]):06o}\0 ".encode()
    shard.write_bytes(head)
    assert [(item.key, item.problem.partition(" ")[0]) for item in read_shard(shard, "a.tar")] == [
        ("a.tar/000", "the"),
        ("a.tar", "the"),
    ]


def test_braces_are_expanded_in_order() -> None:
    assert expand_shards(["d/t-{008..011}.tar", "{a,b}.tar"]) == [
        *(f"d/t-{number}.tar" for number in ("008", "009", "010", "011")),
        "a.tar",
        "b.tar",
    ]


def test_a_malformed_pattern_is_said() -> None:
    with pytest.raises(DataError, match=r"shards 't-\{0\.\.2\.tar' cannot be expanded"):
        expand_shards(["t-{0..2.tar"])
