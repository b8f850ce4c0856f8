"""A small random LBM, its states, and images, that the tests of this folder share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from standins import TINY, Lbm, write_lbm


@pytest.fixture(scope="session")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """Read only."""
    return write_lbm(tmp_path_factory.mktemp("lbm"), TINY)


@pytest.fixture(scope="session")
def states(lbm: Lbm) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Base and tuned as state dicts."""
    return load_file(lbm.base), load_file(lbm.tuned)


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, to see what is written."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
