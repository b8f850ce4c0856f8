"""Sizes, windows and mirroring: drawn from (seed, epoch, sample), the same for source, target and mask."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbm_lora.shards.samples import Part
from lbm_lora.training.data.dataset import Draw, PairDataset, uniform
from lbm_lora.training.data.pairs import PairIndex, Record
from lbm_lora.training.settings import DataSettings

NEAREST = Image.Resampling.NEAREST


def ramp(width: int, height: int) -> Image.Image:
    """An image whose red is x and whose green is y."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[:, :, 0] = np.arange(width)[None]
    values[:, :, 1] = np.arange(height)[:, None]
    return Image.fromarray(values)


def fitted(image: Image.Image, draw: Draw, resample: Image.Resampling = NEAREST, **settings: bool) -> Image.Image:
    """The image of one pair in the size of a draw."""
    dataset = one_pair(image.size, **settings)
    return dataset._fitted(image, dataset.index.record(0), draw, resample)


def one_pair(size: tuple[int, int], **settings: Any) -> PairDataset:
    nowhere = Part(Path("nowhere"), 0, 1)
    values: dict[str, Any] = {"train_folder": "nowhere", "image_size": (64,), **settings}
    index = PairIndex([Record("a", nowhere, nowhere, None, size)])
    return PairDataset(index, DataSettings(**values), seed=0, where="nowhere")


def test_uniform_is_a_function_of_its_arguments() -> None:
    drawn = [uniform("a", 0, 0, index) for index in range(4000)]
    assert drawn[7] == uniform("a", 0, 0, 7)
    assert len({uniform("a", 0, 0, 1), uniform("b", 0, 0, 1), uniform("a", 1, 0, 1), uniform("a", 0, 1, 1)}) == 4
    assert all(0 <= value < 1 for value in drawn)
    histogram, _ = np.histogram(drawn, bins=8, range=(0, 1))
    assert histogram.min() > 420
    assert histogram.max() < 580
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.05


def test_sizes_have_their_probabilities() -> None:
    dataset = one_pair((100, 100), image_size=(64, 128, 256), image_size_prob=(0.25, 0.0, 0.75))
    counts = Counter(dataset.drawn_size(0, uniform("size", index))[0] for index in range(4000))
    assert set(counts) == {64, 256}
    assert 920 < counts[64] < 1080
    assert dataset.drawn_size(0, 0.0) == (64, 64)
    assert dataset.drawn_size(0, 0.25) == (256, 256)
    assert dataset.sizes(0) == ((64, 64), (256, 256))
    # probabilities are checked to add up to 1 only up to rounding
    rounded = one_pair((100, 100), image_size=(64, 128), image_size_prob=(0.5, 0.4999999))
    assert rounded.drawn_size(0, 0.99999999) == (64, 64)


def test_flip_mirrors_half_of_the_samples_and_changes_with_the_epoch() -> None:
    image = ramp(64, 64)
    mirrored = np.asarray(image)[:, ::-1]
    flips = {}
    for index in range(300):
        for epoch in range(2):
            made = np.asarray(fitted(image, Draw(index, epoch, (64, 64)), flip=True))
            flips[index, epoch] = np.array_equal(made, mirrored)
            assert flips[index, epoch] or np.array_equal(made, np.asarray(image))
    assert 250 < sum(flips.values()) < 350
    assert 100 < sum(flips[index, 0] != flips[index, 1] for index in range(300)) < 200


def test_a_crop_keeps_the_aspect_ratio_and_moves() -> None:
    image = ramp(128, 64)
    lefts = set()
    for epoch in range(20):
        draw = Draw(3, epoch, (64, 64))
        made = np.asarray(fitted(image, draw, random_crop=True)).astype(int)
        assert (np.diff(made[:, :, 0], axis=1) == 1).all()  # one pixel of the image for each, not stretched
        assert (made[:, 0, 1] == np.arange(64)).all()  # the whole height
        lefts.add(int(made[0, 0, 0]))
    assert len(lefts) > 10
    assert min(lefts) < 16
    assert max(lefts) > 48


@pytest.mark.parametrize("size", [(1, 1), (100, 37)])
@pytest.mark.parametrize("bucket", [(96, 40), (32, 128)])
def test_windows_lie_within_any_image(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    for index in range(10):
        made = fitted(Image.new("RGB", size), Draw(index, 0, bucket), Image.Resampling.LANCZOS, random_crop=True)
        assert made.size == bucket
