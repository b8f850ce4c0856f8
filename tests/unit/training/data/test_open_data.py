"""From the keys of a training file to the pairs of a split."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lbm_lora.training.data.dataset import open_data
from lbm_lora.training.settings.data_keys import DataSettings


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
