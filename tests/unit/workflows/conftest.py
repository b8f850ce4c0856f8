"""A small random LBM and image pairs that the workflow tests share."""

import shutil
from pathlib import Path

import pytest

from lbm_lora.bundled import PAIRS
from standins import Lbm, write_lbm


@pytest.fixture(scope="session")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """Read only: tests write elsewhere."""
    return write_lbm(tmp_path_factory.mktemp("lbm"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The bundled pairs in a folder of their own."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for path in PAIRS.glob("*.png"):
        shutil.copy(path, folder)
    return folder
