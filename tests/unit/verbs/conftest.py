"""A small random LBM and images that the tests of the verbs share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from standins import TINY, Lbm, write_lbm


@pytest.fixture(scope="session")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """Read only: tests write elsewhere."""
    return write_lbm(tmp_path_factory.mktemp("lbm"), TINY)


@pytest.fixture(scope="session")
def write_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """`write_images(4)`: a folder of random images of 64 x 64."""

    def write(count: int) -> Path:
        folder = tmp_path_factory.mktemp("images")
        for index in range(count):
            values = np.random.default_rng(index).uniform(0, 255, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(values).resize((64, 64)).save(folder / f"{index}.png")
        return folder

    return write
