"""How statistics are collected: probes, and values that cannot be."""

import pytest

from lbm_lora.calibration import CalibrationSettings
from lbm_lora.errors import ConfigError


def test_few_images_get_more_probes() -> None:
    assert [CalibrationSettings().probes_for(count) for count in (1, 15, 16, 64)] == [4, 4, 1, 1]
    assert CalibrationSettings(probes=2).probes_for(1) == 2


def test_values_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="0 probes measure no sensitivities"):
        CalibrationSettings(probes=0)
    with pytest.raises(ConfigError, match="dense_up_to 64 and sketch_rank -1 must not be negative"):
        CalibrationSettings(dense_up_to=64, sketch_rank=-1)
    with pytest.raises(ConfigError, match=r"^size 63 is too small for the buckets\. Use 64 or more\.$"):
        CalibrationSettings(size=63)
