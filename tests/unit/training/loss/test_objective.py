"""The objective of a run: the run's keys, else the base's own."""

from typing import Any

import pytest

from lbm_lora.errors import ConfigError
from lbm_lora.model.config import LBMConfig
from lbm_lora.training.loss.objective import objective_of
from lbm_lora.training.settings.learning_keys import ObjectiveSettings

DEPTH = LBMConfig(latent_loss_type="l1", pixel_loss_type="l1", prob=(0.025, 0.05, 0.025, 0.9), bridge_noise_sigma=0.1)
UNIFORM = LBMConfig(timestep_sampling="uniform", selected_timesteps=None, prob=None)
LOG_NORMAL = LBMConfig(
    timestep_sampling="log_normal", logit_mean=0.5, logit_std=2.0, selected_timesteps=None, prob=None
)


def test_what_is_left_out_is_the_bases_own() -> None:
    objective = objective_of(ObjectiveSettings(), DEPTH)
    assert (objective.latent_loss_type, objective.pixel_loss_type) == ("l1", "l1")
    assert objective.timestep_sampling == "custom_timesteps"
    assert objective.selected_timesteps == (250, 500, 750, 1000)
    assert objective.prob == (0.025, 0.05, 0.025, 0.9)
    assert objective.bridge_noise_sigma == 0.1


def test_the_weights_are_the_runs_own() -> None:
    """LBM's pixel loss needs the decoder and LPIPS: a base does not switch it on."""
    assert LBMConfig().pixel_loss_weight == 10.0
    objective = objective_of(ObjectiveSettings(), LBMConfig())
    assert (objective.latent_loss_weight, objective.pixel_loss_weight) == (1.0, 0.0)
    assert objective_of(ObjectiveSettings(pixel_loss_weight=10), LBMConfig()).pixel_loss_weight == 10.0


def test_what_the_run_says_wins() -> None:
    run = ObjectiveSettings(
        latent_loss_type="l2",
        pixel_loss_type="l2",
        pixel_loss_max_size=128,
        selected_timesteps=(500, 1000),
        prob=(0.25, 0.75),
        bridge_noise_sigma=0,
    )
    objective = objective_of(run, DEPTH)
    assert (objective.latent_loss_type, objective.pixel_loss_type, objective.pixel_loss_max_size) == ("l2", "l2", 128)
    assert (objective.selected_timesteps, objective.prob) == ((500, 1000), (0.25, 0.75))
    assert objective.bridge_noise_sigma == 0.0


def test_new_probabilities_of_the_bases_timesteps() -> None:
    objective = objective_of(ObjectiveSettings(prob=(0, 0, 0, 1)), DEPTH)
    assert (objective.selected_timesteps, objective.prob) == ((250, 500, 750, 1000), (0, 0, 0, 1))


def test_new_timesteps_are_all_alike() -> None:
    """The base's probabilities belong to the base's timesteps, even where there are equally many."""
    assert objective_of(ObjectiveSettings(selected_timesteps=(1, 2, 3, 4)), DEPTH).prob == (0.25,) * 4


def test_another_sampling_than_the_bases() -> None:
    objective = objective_of(ObjectiveSettings(timestep_sampling="uniform"), DEPTH)
    assert (objective.timestep_sampling, objective.selected_timesteps, objective.prob) == ("uniform", (), ())
    custom = ObjectiveSettings(timestep_sampling="custom_timesteps", selected_timesteps=(250, 500))
    assert objective_of(custom, UNIFORM).prob == (0.5, 0.5)


def test_log_normal() -> None:
    inherited = objective_of(ObjectiveSettings(), LOG_NORMAL)
    assert (inherited.logit_mean, inherited.logit_std) == (0.5, 2.0)
    changed = objective_of(ObjectiveSettings(logit_mean=0.0), LOG_NORMAL)
    assert (changed.logit_mean, changed.logit_std) == (0.0, 2.0)
    standard = objective_of(ObjectiveSettings(timestep_sampling="log_normal"), DEPTH)
    assert (standard.logit_mean, standard.logit_std) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("run", "base", "message"),
    [
        (
            {"selected_timesteps": (500.0,)},
            UNIFORM,
            "selected_timesteps needs timestep_sampling custom_timesteps, but the base's own is uniform. "
            "Add timestep_sampling: custom_timesteps, or remove selected_timesteps.",
        ),
        (
            {"logit_std": 1.0},
            DEPTH,
            "logit_std needs timestep_sampling log_normal, but the base's own is custom_timesteps. "
            "Add timestep_sampling: log_normal, or remove logit_std.",
        ),
        (
            {"timestep_sampling": "custom_timesteps"},
            UNIFORM,
            "timestep_sampling custom_timesteps needs selected_timesteps: the base's own has none.",
        ),
        ({"prob": (0.5, 0.5)}, DEPTH, "prob has 2 values, but selected_timesteps has 4. Give one for each."),
    ],
)
def test_keys_that_do_not_go_with_the_base(run: dict[str, Any], base: LBMConfig, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        objective_of(ObjectiveSettings(**run), base)
    assert str(caught.value) == message
