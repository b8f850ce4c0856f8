"""The inputs that statistics keep apart from their moments: which, and that a file gives them back."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lbm_lora.calibration import Statistics, load_statistics, save_statistics, with_checks
from lbm_lora.calibration.check_points import held_points, shifted_points, spread
from lbm_lora.fidelity.answers import outputs_at
from lbm_lora.fidelity.checks import MOST_HELD
from lbm_lora.fidelity.points import bridge_points, image_latent, image_noise
from lbm_lora.model.build import LBMModel

SCHEDULE = ((1000.0, 0.25), (500.0, 0.75))


@pytest.mark.parametrize(("images", "timesteps"), [(1, 4), (3, 4), (12, 4), (17, 1), (64, 4), (2, 2), (40, 20)])
def test_images_come_first_and_no_pair_twice(images: int, timesteps: int) -> None:
    pairs = spread(images, timesteps)
    assert len(pairs) == len(set(pairs)) == min(MOST_HELD, images * timesteps)
    assert len({image for image, _ in pairs}) == min(MOST_HELD, images)
    assert {image for image, _ in pairs} <= set(range(images))
    counts = [sum(index == timestep for _, index in pairs) for timestep in range(min(timesteps, len(pairs)))]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("count", [2, 5])
def test_held_points_are_not_those_that_were_measured(model: LBMModel, images: tuple[Path, ...], count: int) -> None:
    """With few images, the points are mirrored; with more, they come from the third image, which the sums leave out."""
    given = (images * 3)[:count]
    points = held_points(model, given, SCHEDULE, size=64, seed=3)
    assert [(one.timestep, one.probability) for one in points] == list(SCHEDULE) * (2 if count == 2 else 1)
    for index, image in enumerate(given):
        source = image_latent(model, image, size=64)
        for one in bridge_points(model, source, SCHEDULE, image_noise(3, index)):
            is_held = count == 5 and index % 2 == 0 and one.timestep == 1000.0  # the source of an equal image
            assert any(torch.equal(point.state, one.state) for point in points) == is_held


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


@pytest.mark.parametrize(("count", "resized"), [(4, 2), (16, 8), (64, 16)])
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


def test_of_one_held_point_there_is_one_shifted_point_of_each_kind(model: LBMModel, images: tuple[Path, ...]) -> None:
    found = list(shifted_points(model, images[:1], ((1000.0, 1.0),), size=64, seed=3))
    assert [(kind, one.timestep) for kind, one in found] == [
        ("content", 1000.0),
        ("larger", 1000.0),
        ("smaller", 1000.0),
        ("timesteps", 500.0),
    ]


def test_a_file_gives_checks_back(
    statistics: Statistics, model: LBMModel, images: tuple[Path, ...], tmp_path: Path
) -> None:
    expected = with_checks(statistics, model, images).checks
    save_statistics(replace(statistics, checks=expected), tmp_path / "s.safetensors")
    loaded = load_statistics(tmp_path / "s.safetensors").checks
    assert [one.kind for one in loaded] == [
        *["held"] * 4,
        *["content"] * 2,
        *["larger", "smaller"] * 2,
        *["timesteps"] * 2,
    ]
    for one, other in zip(loaded, expected, strict=True):
        assert one.point is not None
        assert other.point is not None
        assert (one.point.timestep, one.point.probability) == (other.point.timestep, other.point.probability)
        assert torch.equal(one.point.state, other.point.state)
        assert torch.equal(one.wanted, outputs_at(model, [one.point]))
    save_statistics(replace(statistics, checks=()), tmp_path / "none.safetensors")
    assert load_statistics(tmp_path / "none.safetensors").checks == ()
