"""The inputs that statistics keep apart from their moments: which, and that a file gives them back."""

import math
from pathlib import Path

import pytest
import torch

from lbm_lora.calibration.check_points import held_points, shifted_points, spread
from lbm_lora.fidelity.checks import MOST_HELD
from lbm_lora.model.build import LBMModel

SCHEDULE = ((1000.0, 0.25), (500.0, 0.75))


@pytest.mark.parametrize(("images", "timesteps"), [(3, 4), (17, 1), (40, 20)])
def test_images_come_first_and_no_pair_twice(images: int, timesteps: int) -> None:
    pairs = spread(images, timesteps)
    assert len(pairs) == len(set(pairs)) == min(MOST_HELD, images * timesteps)
    assert len({image for image, _ in pairs}) == min(MOST_HELD, images)
    assert {image for image, _ in pairs} <= set(range(images))
    counts = [sum(index == timestep for _, index in pairs) for timestep in range(min(timesteps, len(pairs)))]
    assert max(counts) - min(counts) <= 1


def test_shifted_points_are_of_noise_other_sizes_and_other_timesteps(model: LBMModel, images: tuple[Path, ...]) -> None:
    found = list(shifted_points(model, images, SCHEDULE, size=96, seed=3))
    assert [kind for kind, _ in found] == ["content"] * 2 + ["larger", "smaller"] * 2 + ["timesteps"] * 2
    assert [one.timestep for _, one in found] == [1000.0, 500.0] + [1000.0] * 2 + [500.0] * 2 + [750.0, 250.0]
    shapes = [tuple(one.state.shape[2:]) for _, one in found]
    assert shapes[0] == shapes[1][::-1]
    assert shapes[0][0] < shapes[0][1]
    areas = [math.sqrt(height * width) * model.pixels_per_latent for height, width in shapes]
    sides = [96] * 2 + [128, 96 / 2**0.5] * 2 + [96] * 2  # the model is made for 64 pixels: no more than 128
    assert areas == pytest.approx(sides, rel=0.1)
    assert not torch.equal(found[0][1].state, found[1][1].state.mT)


@pytest.mark.parametrize(("count", "resized"), [(4, 2), (64, 16)])
def test_each_held_image_is_checked_at_other_sizes(
    model: LBMModel, images: tuple[Path, ...], count: int, resized: int
) -> None:
    """At the timesteps of held points; of few images, at half of these."""
    given, schedule = [images[index % len(images)] for index in range(count)], (*SCHEDULE, (250.0, 0.5), (750.0, 0.5))
    held = held_points(model, given, schedule, size=64, seed=3)
    found = list(shifted_points(model, given, schedule, size=64, seed=3))
    for kind in ("larger", "smaller"):
        timesteps = [point.timestep for of, point in found if of == kind]
        assert len(timesteps) == resized
        assert count < 64 or timesteps == [point.timestep for point in held]
