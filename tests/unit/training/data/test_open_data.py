"""From the keys of a training file to the pairs of a split; finding pairs in a folder, in both layouts."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lbm_lora import errors
from lbm_lora.bundled import PAIRS
from lbm_lora.errors import ConfigError, DataError, MissingExtraError
from lbm_lora.progress import Silent
from lbm_lora.training.data.open_data import find_pairs, open_data
from lbm_lora.training.data.pairs import Keys
from lbm_lora.training.settings.data_keys import DataSettings

ALL = Keys(mask="mask.png")


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def shards(write_shard: Callable[..., Path], png: Callable[..., bytes], tmp_path: Path) -> str:
    """Two shards of three pairs; both have samples 000 to 002."""
    for number in range(2):
        pairs = {
            f"{i:03d}": {"source.jpg": png(10 * number + i), "target.jpg": png(10 * number + i + 5), "txt": b"x"}
            for i in range(3)
        }
        write_shard(f"t-{number}.tar", pairs)
    return str(tmp_path / "t-{0..1}.tar")


def test_shards_and_a_folder_of_the_same_pairs_give_the_same_samples(
    shards: str, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(6):
        seed = 10 * (number // 3) + number % 3
        (folder / f"{number}.source.png").write_bytes(png(seed))
        (folder / f"{number}.target.png").write_bytes(png(seed + 5))
    one = open_data(DataSettings(train_shards=(shards,), image_size=(64,)), "train", seed=0)
    other = open_data(DataSettings(train_folder=folder, image_size=(64,)), "train", seed=0)
    assert one.index.keys == tuple(f"t-{number}.tar/{i:03d}" for number in range(2) for i in range(3))
    assert len(one) == len(other) == 6
    for index in range(6):
        found, same = one[index], other[index]
        for part, same_part in ((found.source, same.source), (found.target, same.target)):
            assert part is not None
            assert same_part is not None
            assert torch.equal(part, same_part)


def test_shards_of_one_name_in_two_folders_keep_their_keys_apart(
    write_shard: Callable[..., Path], png: Callable[..., bytes]
) -> None:
    pair = {"000": {"source.jpg": png(0), "target.jpg": png(1)}}
    paths = tuple(str(write_shard(f"{folder}/t.tar", pair)) for folder in "ab")
    dataset = open_data(DataSettings(train_shards=paths, image_size=(64,)), "train", seed=0)
    assert dataset.index.keys == tuple(f"{path}/000" for path in paths)


def test_both_splits_of_one_file(write_pairs: Callable[..., Path]) -> None:
    settings = DataSettings(
        train_folder=write_pairs("train", 3),
        validation_folder=write_pairs("validation", 2, size=(128, 64)),
        image_size=(64, 96, 128),
        image_size_prob=(0.25, 0.5, 0.25),
        flip=True,
        random_crop=True,
    )
    train, validation = open_data(settings, "train", seed=7), open_data(settings, "validation", seed=7)
    assert (len(train), len(validation)) == (3, 2)
    assert (train.preparation.flip, train.preparation.random_crop, train.preparation.seed) == (True, True, 7)
    # validation is not augmented and has one size
    assert (validation.preparation.flip, validation.preparation.random_crop) == (False, False)
    assert validation.preparation.buckets((128, 64)) == (validation.draw(0).size,) == ((120, 72),)


def test_budgets_without_probabilities_are_all_alike(write_pairs: Callable[..., Path]) -> None:
    settings = DataSettings(train_folder=write_pairs(), image_size=(64, 128, 256, 512))
    assert open_data(settings, "train", seed=0).preparation.probabilities == (0.25,) * 4


def test_what_is_skipped_is_noted(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=4)
    (folder / "001.target.png").unlink()
    notes = Notes()
    settings = DataSettings(train_folder=folder, image_size=(64,), max_corrupt=0.25)
    dataset = open_data(settings, "train", seed=0, progress=notes)
    assert notes.lines == [f"{folder}: 1 of 4 samples cannot be used (25.0 %): 001 (no target.jpg, only source.png)."]
    assert dataset.index.keys == ("000", "002", "003")


def test_too_much_that_cannot_be_used_stops(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=4)
    (folder / "001.target.png").unlink()
    with pytest.raises(DataError, match=r"pairs: 1 of 4 samples cannot be used \(25\.0 %\): .*max_corrupt is 5 %"):
        open_data(DataSettings(train_folder=folder), "train", seed=0)


def test_another_key_is_answered_with_what_is_there(shards: str) -> None:
    settings = DataSettings(train_shards=(shards,), source_key="image.jpg")
    with pytest.raises(DataError, match=r"6 of 6 samples .*no image\.jpg, only source\.jpg, target\.jpg"):
        open_data(settings, "train", seed=0)


def test_shards_without_samples(write_shard: Callable[..., Path]) -> None:
    path = write_shard("empty.tar", {})
    with pytest.raises(DataError, match=r"empty\.tar holds no pairs\."):
        open_data(DataSettings(train_shards=(str(path),)), "train", seed=0)


def test_a_split_without_data(shards: str) -> None:
    with pytest.raises(ConfigError, match=r"no validation pairs\. Set validation_shards or validation_folder"):
        open_data(DataSettings(train_shards=(shards,)), "validation", seed=0)


def test_masks_are_read_where_a_key_is_given(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(mask=True)
    with_mask = open_data(DataSettings(train_folder=folder, mask_key="mask.png"), "train", seed=0)
    without = open_data(DataSettings(train_folder=folder), "train", seed=0)
    assert with_mask[0].mask is not None
    assert without[0].mask is None


def test_shards_need_webdataset(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "webdataset" else True)
    with pytest.raises(MissingExtraError, match=r"^reading shards needs webdataset, .*Run: pip install \"lbm-lora\["):
        open_data(DataSettings(train_shards=(shards,)), "train", seed=0)


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


def test_a_key_without_a_word_is_the_plain_image(tmp_path: Path) -> None:
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
        f"{tmp_path} holds no pairs: neither NAME.source.png next to NAME.target.png, nor folders source/ and target/ "
        "with images of the same names."
    )


def test_a_folder_of_shards_is_no_folder_of_pairs(tmp_path: Path) -> None:
    touch(tmp_path, "pairs-000000.tar")
    with pytest.raises(DataError, match=r"holds shards, such as pairs-000000\.tar, and no pairs\. Give them as train_"):
        find_pairs(tmp_path, Keys())


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder\. Give a folder of pairs, or WebDataset shards\."):
        find_pairs(tmp_path / "nowhere", ALL)


def test_links_to_nothing_and_fifos_are_damaged_pairs(tmp_path: Path) -> None:
    for name in ("a.source.png", "b.source.png"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "a.target.png").symlink_to("nothing")
    os.mkfifo(tmp_path / "b.target.png")
    assert [found.problem for found in find_pairs(tmp_path, Keys())] == [
        "a.target.png cannot be read: No such file or directory",
        "b.target.png cannot be read: Not a regular file",
    ]
