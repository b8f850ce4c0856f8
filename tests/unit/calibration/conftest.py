"""A small tuned LBM, images, and statistics of them, that the tests of this folder share."""

from pathlib import Path

import pytest
from two_levels import noise_images, two_level_model

from lbm_lora.calibration import CalibrationSettings, Statistics, collect
from lbm_lora.model.build import LBMModel


@pytest.fixture(scope="session")
def settings() -> CalibrationSettings:
    """Small enough that some sides and kernels are kept complete, and others as a sketch or by channel."""
    return CalibrationSettings(
        timesteps=(1000.0, 500.0), probes=2, size=64, seed=5, dense_up_to=32, sketch_rank=8, conv_dense_up_to=144
    )


@pytest.fixture(scope="session")
def model() -> LBMModel:
    return two_level_model()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return noise_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def statistics(model: LBMModel, images: tuple[Path, ...], settings: CalibrationSettings) -> Statistics:
    return collect(model, images, settings, tuned="abc")
