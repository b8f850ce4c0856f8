"""Which timesteps were trained, and which numbers of steps stay on them."""

import pytest

from lbm_lora.errors import ConfigError
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.schedule import (
    check_steps,
    from_source,
    schedule_of,
    step_counts,
    trained_step_counts,
)
from lbm_lora.progress import LbmLoraWarning

TRAINED = LBMConfig(selected_timesteps=(250, 500, 750, 1000), prob=(0.1, 0.2, 0.3, 0.4))


def test_all_trained_timesteps_with_their_probabilities() -> None:
    assert schedule_of(TRAINED) == ((250, 0.1), (500, 0.2), (750, 0.3), (1000, 0.4))


def test_some_of_them_keep_their_ratio() -> None:
    assert schedule_of(TRAINED, (1000, 500)) == ((1000, pytest.approx(2 / 3)), (500, pytest.approx(1 / 3)))


def test_what_training_never_drew_is_left_out() -> None:
    config = LBMConfig(selected_timesteps=(250, 1000), prob=(0, 1))
    assert schedule_of(config) == ((1000, 1),)
    with pytest.raises(ConfigError, match=r"^timestep 250 was not trained\. Choose from 1000\.$"):
        schedule_of(config, (250,))


def test_a_model_of_all_timesteps() -> None:
    config = LBMConfig(timestep_sampling="uniform", selected_timesteps=None, prob=None)
    assert schedule_of(config) == ((250, 0.25), (500, 0.25), (750, 0.25), (1000, 0.25))
    assert schedule_of(config, (900, 30)) == ((900, 0.5), (30, 0.5))
    with pytest.raises(ConfigError, match=r"^timesteps must be above 0 and at most 1000, got 1001\.$"):
        schedule_of(config, (900, 1001))


def test_one_timestep_twice() -> None:
    with pytest.raises(ConfigError, match=r"^timesteps must not repeat, got 500, 500\.$"):
        schedule_of(TRAINED, (500, 500))


def test_from_the_source_down() -> None:
    assert [timestep for timestep, _ in from_source(schedule_of(TRAINED))] == [1000, 750, 500, 250]


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        ((250, 500, 750, 1000), (1, 2, 4)),
        ((1000,), (1,)),
        ((500, 1000), (1, 2)),
        ((250.0, 500.0, 1000.0), (1, 2)),
        ((250, 500, 750), ()),
        ((), ()),
    ],
)
def test_trained_step_counts(selected: tuple[float, ...], expected: tuple[int, ...]) -> None:
    assert trained_step_counts(selected) == expected


def test_step_counts_of_a_model() -> None:
    assert step_counts(LBMConfig()) == (1, 2, 4)
    assert step_counts(LBMConfig(timestep_sampling="uniform")) is None


def test_steps_off_the_trained_timesteps_are_said() -> None:
    with pytest.warns(
        LbmLoraWarning,
        match=r"^3 steps call the denoiser at untrained timesteps\. Trained numbers of steps: 1, 2, 4\.$",
    ):
        check_steps(TRAINED, 3)
    check_steps(TRAINED, 4)
    check_steps(LBMConfig(timestep_sampling="uniform"), 7)
    with pytest.raises(ConfigError, match=r"^steps must be 1 or more, got 0"):
        check_steps(TRAINED, 0)
