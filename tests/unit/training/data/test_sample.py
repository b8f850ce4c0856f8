"""Sizes, windows and mirroring: drawn from (seed, epoch, sample), the same for source, target and mask."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbm_lora.training.data.dataset import Draw, Preparation, uniform

NEAREST = Image.Resampling.NEAREST


def ramp(width: int, height: int) -> Image.Image:
    """An image whose red is x and whose green is y."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[:, :, 0] = np.arange(width)[None]
    values[:, :, 1] = np.arange(height)[:, None]
    return Image.fromarray(values)


def plain(**settings: object) -> Preparation:
    values: dict[str, Any] = {"image_size": (64,), "probabilities": (1.0,), "seed": 0, **settings}
    return Preparation(**values)


def test_budgets_have_their_probabilities() -> None:
    preparation = plain(image_size=(64, 128, 256), probabilities=(0.25, 0.0, 0.75))
    counts = Counter(preparation.drawn_size(uniform("size", index)) for index in range(4000))
    assert set(counts) == {64, 256}
    assert 920 < counts[64] < 1080
    assert preparation.drawn_size(0.0) == 64
    assert preparation.drawn_size(0.25) == 256
    assert preparation.buckets((100, 100)) == ((64, 64), (256, 256))
    # probabilities are checked to add up to 1 only up to rounding
    assert plain(image_size=(64, 128), probabilities=(0.5, 0.4999999)).drawn_size(0.99999999) == 64


def test_without_augmentation_an_image_is_stretched() -> None:
    image = ramp(128, 64)
    made = plain().prepared(Draw(0, 0, (64, 64)), image, NEAREST)
    assert np.array_equal(np.asarray(made), np.asarray(image.resize((64, 64), NEAREST)))
    assert plain().prepared(Draw(0, 0, (128, 64)), image, NEAREST).tobytes() == image.tobytes()


def test_flip_mirrors_half_of_the_samples_and_changes_with_the_epoch() -> None:
    image = ramp(64, 64)
    mirrored = np.asarray(image)[:, ::-1]
    flips = {}
    for index in range(300):
        for epoch in range(2):
            made = np.asarray(plain(flip=True).prepared(Draw(index, epoch, (64, 64)), image, NEAREST))
            flips[index, epoch] = np.array_equal(made, mirrored)
            assert flips[index, epoch] or np.array_equal(made, np.asarray(image))
    assert 250 < sum(flips.values()) < 350
    assert 100 < sum(flips[index, 0] != flips[index, 1] for index in range(300)) < 200


def test_a_crop_keeps_the_aspect_ratio_and_moves() -> None:
    image = ramp(128, 64)
    lefts = set()
    for epoch in range(20):
        draw = Draw(3, epoch, (64, 64))
        made = np.asarray(plain(random_crop=True).prepared(draw, image, NEAREST)).astype(int)
        assert (np.diff(made[:, :, 0], axis=1) == 1).all()  # one pixel of the image for each, not stretched
        assert (made[:, 0, 1] == np.arange(64)).all()  # the whole height
        lefts.add(int(made[0, 0, 0]))
    assert len(lefts) > 10
    assert min(lefts) < 16
    assert max(lefts) > 48


@pytest.mark.parametrize("factor", [0.5, 3])
def test_images_of_other_sizes_are_cut_alike(factor: float) -> None:
    one, other = ramp(192, 80), ramp(192, 80).resize((int(192 * factor), int(80 * factor)), NEAREST)
    for index in range(5):
        draw = Draw(index, 0, (32, 32))
        preparation = plain(random_crop=True, flip=True)
        first, second = (np.asarray(preparation.prepared(draw, image, NEAREST)).astype(int) for image in (one, other))
        assert np.abs(first - second).max() <= 2  # half a pixel of the smaller one
