"""The points that statistics keep: which, and that a file gives them back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lbm_lora.calibration import (
    CHECK_POINTS,
    CalibrationSettings,
    Statistics,
    check_points,
    load_statistics,
    save_statistics,
)
from lbm_lora.calibration.collect import random_signs, spread
from lbm_lora.fidelity.points import bridge_points, generator, image_latent, image_noise
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import schedule_of

SCHEDULE = ((1000.0, 0.25), (500.0, 0.75))


@pytest.mark.parametrize(("images", "timesteps"), [(1, 4), (3, 4), (16, 4), (17, 1), (64, 4), (2, 2), (40, 20)])
def test_images_come_first_and_no_pair_twice(images: int, timesteps: int) -> None:
    pairs = spread(images, timesteps)
    assert len(pairs) == len(set(pairs)) == min(CHECK_POINTS, images * timesteps)
    assert len({image for image, _ in pairs}) == min(CHECK_POINTS, images)
    assert {image for image, _ in pairs} <= set(range(images))
    counts = [sum(index == timestep for _, index in pairs) for timestep in range(min(timesteps, len(pairs)))]
    assert max(counts) - min(counts) <= 1


def test_they_are_the_points_that_were_measured(model: LBMModel, images: tuple[Path, ...]) -> None:
    points = check_points(model, images, SCHEDULE, size=64, seed=3)
    found = {(point.timestep, point.probability): 0 for point in points}
    for index, image in enumerate(images):
        source = image_latent(model, image, size=64)
        for one in bridge_points(model, source, SCHEDULE, image_noise(3, index)):
            found[one.timestep, one.probability] += sum(torch.equal(point.state, one.state) for point in points)
    assert found == dict.fromkeys(SCHEDULE, 2)
    assert len(points) == 4


def test_a_file_gives_them_back(
    statistics: Statistics, model: LBMModel, images: tuple[Path, ...], settings: CalibrationSettings, tmp_path: Path
) -> None:
    expected = check_points(model, images, schedule_of(model.config, settings.timesteps), size=64, seed=5)
    save_statistics(statistics, tmp_path / "s.safetensors")
    loaded = load_statistics(tmp_path / "s.safetensors").check_points
    assert len(loaded) == len(expected) == 4
    for one, other in zip(loaded, expected, strict=True):
        assert (one.timestep, one.probability) == (other.timestep, other.probability)
        assert torch.equal(one.state, other.state)
    save_statistics(replace(statistics, check_points=()), tmp_path / "none.safetensors")
    assert load_statistics(tmp_path / "none.safetensors").check_points == ()


def test_probes_are_signs() -> None:
    probe = random_signs((4, 50, 50), generator("probe"))
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(probe.mean())) < 0.04
    assert torch.equal(probe, random_signs((4, 50, 50), generator("probe")))
