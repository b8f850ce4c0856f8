"""At which timesteps is measured, and with how many probes."""

import pytest

from lbm_lora.calibrate import Settings, schedule_of
from lbm_lora.errors import ConfigError
from lbm_lora.model.config import LBMConfig

TRAINED = LBMConfig(selected_timesteps=(250, 500, 750, 1000), prob=(0.1, 0.2, 0.3, 0.4))


def test_all_trained_timesteps_with_their_probabilities() -> None:
    assert schedule_of(TRAINED) == ((250, 0.1), (500, 0.2), (750, 0.3), (1000, 0.4))


def test_some_of_them_keep_their_ratio() -> None:
    assert schedule_of(TRAINED, (1000, 500)) == ((1000, pytest.approx(2 / 3)), (500, pytest.approx(1 / 3)))


def test_what_training_never_drew_is_left_out() -> None:
    config = LBMConfig(selected_timesteps=(250, 1000), prob=(0, 1))
    assert schedule_of(config) == ((1000, 1),)
    with pytest.raises(ConfigError, match=r"^timestep 250 was not trained\. Take some of 1000\.$"):
        schedule_of(config, (250,))


def test_a_model_of_all_timesteps() -> None:
    config = LBMConfig(timestep_sampling="uniform", selected_timesteps=None, prob=None)
    assert schedule_of(config) == ((250, 0.25), (500, 0.25), (750, 0.25), (1000, 0.25))
    assert schedule_of(config, (900, 30)) == ((900, 0.5), (30, 0.5))
    with pytest.raises(ConfigError, match=r"^timestep 1001 cannot be: timesteps lie above 0 and up to 1000\.$"):
        schedule_of(config, (900, 1001))


def test_one_timestep_twice() -> None:
    with pytest.raises(ConfigError, match=r"^timesteps 500, 500: one comes twice\. Give each once\.$"):
        schedule_of(TRAINED, (500, 500))


def test_few_images_get_more_probes() -> None:
    assert [Settings().probes_for(count) for count in (1, 15, 16, 64)] == [4, 4, 1, 1]
    assert Settings(probes=2).probes_for(1) == 2


def test_values_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="0 probes measure no sensitivities"):
        Settings(probes=0)
    with pytest.raises(ConfigError, match="dense_up_to 64 and sketch_rank -1 must not be negative"):
        Settings(dense_up_to=64, sketch_rank=-1)
    with pytest.raises(ConfigError, match=r"^size 63 is too small for the buckets\. Use 64 or more\.$"):
        Settings(size=63)
