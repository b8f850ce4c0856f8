"""The states that statistics keep: which, and that a file gives them back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lbm_lora.calibrate import CHECKS, Settings, Statistics, check_states, load_statistics, save_statistics, schedule_of
from lbm_lora.calibrate.checks import spread
from lbm_lora.calibrate.states import bridge_states, source_latent
from lbm_lora.model.build import LBMModel

SCHEDULE = ((1000.0, 0.25), (500.0, 0.75))


@pytest.mark.parametrize(("images", "timesteps"), [(1, 4), (3, 4), (16, 4), (17, 1), (64, 4), (2, 2), (40, 20)])
def test_pictures_come_first_and_no_pair_twice(images: int, timesteps: int) -> None:
    pairs = spread(images, timesteps)
    assert len(pairs) == len(set(pairs)) == min(CHECKS, images * timesteps)
    assert len({image for image, _ in pairs}) == min(CHECKS, images)
    assert {image for image, _ in pairs} <= set(range(images))
    counts = [sum(index == timestep for _, index in pairs) for timestep in range(min(timesteps, len(pairs)))]
    assert max(counts) - min(counts) <= 1


def test_they_are_the_states_that_were_measured(model: LBMModel, pictures: tuple[Path, ...]) -> None:
    checks = check_states(model, pictures, SCHEDULE, size=64, seed=3)
    found = {(check.timestep, check.probability): 0 for check in checks}
    for index, picture in enumerate(pictures):
        source = source_latent(model, picture, size=64)
        for timestep, probability, state in bridge_states(model, source, SCHEDULE, seed=3, image=index):
            found[timestep, probability] += sum(torch.equal(check.state, state) for check in checks)
    assert found == dict.fromkeys(SCHEDULE, 2)
    assert len(checks) == 4


def test_a_file_gives_them_back(
    statistics: Statistics, model: LBMModel, pictures: tuple[Path, ...], settings: Settings, tmp_path: Path
) -> None:
    expected = check_states(model, pictures, schedule_of(model.config, settings.timesteps), size=64, seed=5)
    save_statistics(statistics, tmp_path / "s.safetensors")
    loaded = load_statistics(tmp_path / "s.safetensors").checks
    assert len(loaded) == len(expected) == 4
    for one, other in zip(loaded, expected, strict=True):
        assert (one.timestep, one.probability) == (other.timestep, other.probability)
        assert torch.equal(one.state, other.state)
    save_statistics(replace(statistics, checks=()), tmp_path / "none.safetensors")
    assert load_statistics(tmp_path / "none.safetensors").checks == ()
