"""The comparison image: every image whole, labels above, small ones enlarged."""

import numpy as np
from PIL import Image

from lbm_lora.imaging.grids import comparison_grid

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 10)]
LABELS = ["source", "base", "with LoRA", "tuned"]


def flat(size: tuple[int, int]) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in COLOURS]


def count(grid: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(grid) == colour).all(axis=2).sum())


def test_every_image_is_whole_and_in_its_order() -> None:
    grid = comparison_grid(LABELS, [flat((128, 128)), flat((128, 64))])
    assert [count(grid, colour) for colour in COLOURS] == [256 * 256 + 256 * 128] * 4
    row = np.asarray(grid)[grid.height - 20]
    left = [int(np.argmax((row == colour).all(axis=1))) for colour in COLOURS]
    assert left == sorted(left)


def test_labels_are_drawn_above_and_high_enough() -> None:
    images = flat((128, 128))
    grid = np.asarray(comparison_grid(LABELS, [images]).convert("L"))
    head = grid[: grid.shape[0] - 256 - 16]
    dark_rows = np.flatnonzero((head < 128).any(axis=1))
    assert dark_rows.max() - dark_rows.min() >= 14
    for column in range(4):
        assert (head[:, 8 + column * 264 : 8 + column * 264 + 256] < 128).any()
