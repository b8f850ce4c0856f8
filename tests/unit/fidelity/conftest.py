"""A small tuned LBM with images, and an LBM as files, that the tests of this folder share."""

from pathlib import Path

import pytest
from two_levels import noise_images, two_level_model

from lbm_lora.model.build import LBMModel
from standins import Lbm, write_lbm


@pytest.fixture(scope="session")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """Read only: tests write elsewhere."""
    return write_lbm(tmp_path_factory.mktemp("lbm"))


@pytest.fixture(scope="session")
def model() -> LBMModel:
    return two_level_model()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return noise_images(tmp_path_factory.mktemp("images"))
