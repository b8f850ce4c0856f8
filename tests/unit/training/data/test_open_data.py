"""From the keys of a training file to the pairs of a split."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lbm_lora.progress import Silent
from lbm_lora.training.data.dataset import Draw, open_data
from lbm_lora.training.settings import DataSettings


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
    assert set(train.sizes(0)) == {(64, 64), (96, 96), (128, 128)}
    # validation is not augmented and has one size
    assert validation.sizes(0) == (validation.draw(0).size,) == ((120, 72),)
    size = (120, 72)
    drawn = [validation[Draw(0, epoch, size)].source for epoch in range(8)]
    assert all(torch.equal(drawn[0], other) for other in drawn if drawn[0] is not None and other is not None)


def test_what_is_skipped_is_noted(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(count=4)
    (folder / "001.target.png").unlink()
    notes = Notes()
    settings = DataSettings(train_folder=folder, image_size=(64,), max_corrupt=0.25)
    dataset = open_data(settings, "train", seed=0, progress=notes)
    assert notes.lines == [f"{folder}: 1 of 4 samples cannot be used (25.0 %): 001 (no target.jpg, only source.png)."]
    assert dataset.index.keys == ("000", "002", "003")
