"""Finding pairs in a folder, in both layouts."""

from pathlib import Path

import pytest

from lbm_lora.bundled import PAIRS
from lbm_lora.errors import DataError
from lbm_lora.train.data.folders import find_pairs
from lbm_lora.train.data.parts import Keys

ALL = Keys(mask="mask.png")


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


def test_masks_are_left_alone_without_a_mask_key(tmp_path: Path) -> None:
    touch(tmp_path, "a.source.png", "a.target.png", "a.mask.png")
    assert found(tmp_path, Keys()) == {"a": {"source.png": b"a.source.png", "target.png": b"a.target.png"}}


def test_the_words_are_those_of_the_keys(tmp_path: Path) -> None:
    touch(tmp_path, "a.image.png", "a.normal_aligned.png", "a.source.png")
    keys = Keys(source="image.jpg", target="normal_aligned.png")
    assert found(tmp_path, keys) == {"a": {"image.png": b"a.image.png", "normal_aligned.png": b"a.normal_aligned.png"}}


def test_a_key_without_a_word_is_the_plain_picture(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.target.jpg")
    assert found(tmp_path, Keys(source="jpg")) == {"a": {"jpg": b"a.jpg", "target.jpg": b"a.target.jpg"}}


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}.source.png" for name in ("c", "a", "b10", "b9")))
    assert list(found(tmp_path)) == ["a", "b10", "b9", "c"]


def test_the_bundled_pairs() -> None:
    pairs = found(PAIRS)
    assert len(pairs) == 12
    assert all(set(parts) == {"source.png", "target.png", "mask.png"} for parts in pairs.values())


def test_nothing_of_either_layout_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "source/a.png")
    with pytest.raises(DataError) as raised:
        find_pairs(tmp_path, ALL)
    assert str(raised.value) == (
        f"{tmp_path} holds no pairs: neither NAME.source.png beside NAME.target.png, nor folders source/ and target/ "
        "with pictures of equal names."
    )


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no folder\. Give a folder of pairs, or WebDataset shards\."):
        find_pairs(tmp_path / "nowhere", ALL)
