"""How statistics are collected: probes, and values that cannot be."""

import pytest

from lbm_lora.calibration import CalibrationSettings
from lbm_lora.errors import ConfigError


def test_few_images_get_more_probes() -> None:
    assert [CalibrationSettings().probes_for(count) for count in (1, 15, 16, 64)] == [4, 4, 1, 1]
    assert CalibrationSettings(probes=2).probes_for(1) == 2


def test_values_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="probes must be 1 or more, got 0"):
        CalibrationSettings(probes=0)
    with pytest.raises(ConfigError, match="sketch_rank must be 0 or more, got -1"):
        CalibrationSettings(dense_up_to=64, sketch_rank=-1)
    with pytest.raises(ConfigError, match=r"^size must be 64 or more, got 63\.$"):
        CalibrationSettings(size=63)
