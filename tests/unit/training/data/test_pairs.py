"""Pairs in a folder, in both layouts, and their index: choice of parts, sizes, what is left out and why."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lbm_lora.errors import DataError
from lbm_lora.imaging.image_file import READABLE
from lbm_lora.shards.samples import Found, Part, Skipped
from lbm_lora.training.data.pairs import Keys, PairIndex, check_corrupt, find_pairs, make_index, same_shape

ALL = Keys(mask="mask.png")


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Found]:
    """`find("000", source_png=data)`: those parts under one key, the bytes one after the other in one file."""

    def make(key: str, **parts: bytes) -> Found:
        path = tmp_path / f"{key}.bin"
        path.write_bytes(b"".join(parts.values()))
        places: dict[str, Part] = {}
        offset = 0
        for name, data in parts.items():
            places[name.replace("_", ".")] = Part(path, offset, len(data))
            offset += len(data)
        return Found(key, places)

    return make


def read(index: PairIndex, number: int) -> list[bytes | None]:
    """The bytes of source, target and mask."""
    pair = index.record(number)
    return [part and part.read() for part in (pair.source, pair.target, pair.mask)]


def test_pairs_are_read_from_their_places(find: Callable[..., Found], png: Callable[..., bytes]) -> None:
    one, two, mask = png(1, (80, 60)), png(2, (80, 60)), png(3, (80, 60))
    found = [find("a", source_png=one, target_png=two, mask_png=mask), find("b", target_png=one, source_png=two)]
    index = make_index(found[:1], Keys(mask="mask.png"))
    assert (index.keys, index.size(0), read(index, 0)) == (("a",), (80, 60), [one, two, mask])
    assert (index.masks, index.nbytes) == (1, len(one) + len(two) + len(mask))
    index = make_index(found, Keys())
    assert index.keys == ("a", "b")
    assert (read(index, 0)[2], read(index, 1), index.masks) == (None, [two, one, None], 0)


def test_the_extension_of_a_key_is_not_decisive(find: Callable[..., Found], png: Callable[..., bytes]) -> None:
    jpg, exact, other = png(0, kind="JPEG"), png(1), png(2)
    index = make_index([find("a", source_jpg=jpg, source_png=exact, target_webp=other)], Keys(source="Source.JPG"))
    assert read(index, 0) == [jpg, other, None]


def test_what_cannot_be_used_is_named_with_its_reason(find: Callable[..., Found], png: Callable[..., bytes]) -> None:
    good = {"source_png": png(0), "target_png": png(1), "mask_png": png(2)}
    found = [
        find("good", **good),
        find("alone", source_png=png(0), json=b"{}"),
        find("two", source_png=png(0), target_png=png(1), target_webp=png(1)),
        find("text", **good | {"target_png": b"a text, not an image"}),
        find("shape", **good | {"target_png": png(1, (64, 48))}),
        find("nomask", source_png=png(0), target_png=png(1)),
        find("badmask", **good | {"mask_png": png(2, (48, 64))}),
        find("empty", **good | {"source_png": b""}),
        Found("shard.tar", {}, "the shard ends"),
    ]
    index = make_index(found, Keys(mask="mask.png"))
    assert index.keys == ("good",)
    assert index.skipped == (
        Skipped("alone", "no target.jpg, only json, source.png"),
        Skipped("two", "target.png and target.webp: which one is target.jpg?"),
        Skipped("text", f"target: not an image in a supported format ({READABLE})"),
        Skipped("shape", "source 64x64, target 64x48: the shapes differ"),
        Skipped("nomask", "no mask.png, only source.png, target.png"),
        Skipped("badmask", "source 64x64, mask 48x64: the shapes differ"),
        Skipped("empty", f"source: not an image in a supported format ({READABLE})"),
        Skipped("shard.tar", "the shard ends"),
    )


def test_optional_masks(find: Callable[..., Found], png: Callable[..., bytes]) -> None:
    pair = {"source_png": png(0), "target_png": png(1)}
    keys = Keys(mask="mask.jpg", mask_optional=True)
    index = make_index([find("a", **pair), find("b", **pair, mask_png=png(2)), find("c", **pair, mask_png=b"x")], keys)
    assert index.keys == ("a", "b")
    assert [read(index, number)[2] for number in (0, 1)] == [None, png(2)]
    assert index.skipped[0].reason.startswith("mask: not an image")


def test_a_header_behind_a_large_preview(find: Callable[..., Found], png: Callable[..., bytes]) -> None:
    jpeg = png(0, (96, 64), kind="JPEG")
    comment = b"\xff\xfe\xff\xfd" + bytes(0xFFFB)  # a segment of 64 kB in front
    index = make_index([find("a", source_jpg=jpeg[:2] + comment + jpeg[2:], target_jpg=jpeg)], Keys())
    assert index.sizes.tolist() == [[96, 64]]


def test_the_limit_of_corrupt_samples() -> None:
    skipped = [Skipped(f"{number:03d}", "it is broken") for number in range(5)]
    check_corrupt("here", skipped, 100, 0.05)
    with pytest.raises(DataError) as raised:
        check_corrupt("here", skipped, 99, 0.05)
    assert str(raised.value) == (
        "here: 5 of 99 samples cannot be used (5.1 %): 000 (it is broken), 001 (it is broken), 002 (it is broken) and "
        "2 more, but max_corrupt is 5 %. `lbm-lora data check` lists them all."
    )
    with pytest.raises(DataError, match=r"5 of 5 samples"):
        check_corrupt("here", skipped, 5, 1.0)
    with pytest.raises(DataError, match=r"here holds no pairs\."):
        check_corrupt("here", [], 0, 1.0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((640, 480), (320, 240), True),
        ((641, 480), (320, 240), True),
        ((640, 480), (480, 640), False),
        ((640, 480), (640, 460), False),
    ],
)
def test_shapes_are_the_same_but_for_rounding(one: tuple[int, int], other: tuple[int, int], same: bool) -> None:
    assert same_shape(one, other) is same
    assert same_shape(other, one) is same


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def found(folder: Path, keys: Keys = ALL) -> dict[str, dict[str, bytes]]:
    return {item.key: {name: part.read() for name, part in item.parts.items()} for item in find_pairs(folder, keys)}


def test_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.source.png", "b.target.JPG", "b.mask.png", "a.v2.source.jpg", "a.v2.target.jpg", "read.me")
    touch(tmp_path, "photo.png", ".hidden.source.png", ".trash/c.source.png", "deep/er/c.source.webp")
    assert found(tmp_path) == {
        "a.v2": {"source.jpg": b"a.v2.source.jpg", "target.jpg": b"a.v2.target.jpg"},
        "b": {"source.png": b"b.source.png", "target.jpg": b"b.target.JPG", "mask.png": b"b.mask.png"},
        "deep/er/c": {"source.webp": b"deep/er/c.source.webp"},
    }


def test_by_folder(tmp_path: Path) -> None:
    touch(tmp_path, "source/a.png", "target/a.jpg", "mask/a.png", "source/x/b.c.png", "target/x/b.c.png")
    touch(tmp_path, "other/a.png", "target/a.txt")
    assert found(tmp_path) == {
        "a": {"source.png": b"source/a.png", "target.jpg": b"target/a.jpg", "mask.png": b"mask/a.png"},
        "x/b.c": {"source.png": b"source/x/b.c.png", "target.png": b"target/x/b.c.png"},
    }


def test_links_to_nothing_and_fifos_are_damaged_pairs(tmp_path: Path) -> None:
    for name in ("a.source.png", "b.source.png"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "a.target.png").symlink_to("nothing")
    os.mkfifo(tmp_path / "b.target.png")
    assert [found.problem for found in find_pairs(tmp_path, Keys())] == [
        "a.target.png cannot be read: No such file or directory",
        "b.target.png cannot be read: Not a regular file",
    ]
