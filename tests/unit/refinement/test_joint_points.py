"""Points of images, as a joint refit learns them."""

import torch

from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.fidelity.points import Point
from lbm_lora.refinement.joint import spread_points


def points(images: int) -> list[AnsweredPoint]:
    """Return points at three timesteps, whose states are the number of their image."""
    return [
        AnsweredPoint(
            point=Point(timestep=timestep, probability=1 / 3, state=torch.full((1, 1, 1, 1), float(image))),
            wanted=torch.zeros(1, 1, 1, 1),
        )
        for image in range(images)
        for timestep in (250.0, 500.0, 1000.0)
    ]


def test_few_points_are_of_different_images_and_all_timesteps() -> None:
    chosen = spread_points(points(10), 5)
    assert [int(one.point.state) for one in chosen] == [0, 2, 4, 6, 8]
    assert [one.point.timestep for one in chosen] == [250.0, 500.0, 1000.0, 250.0, 500.0]


def test_more_points_than_images_take_further_timesteps() -> None:
    chosen = spread_points(points(2), 5)
    found = [(int(one.point.state), one.point.timestep) for one in chosen]
    assert found == [(0, 250.0), (1, 500.0), (0, 500.0), (1, 1000.0), (0, 1000.0)]
    assert len({(int(one.point.state), one.point.timestep) for one in spread_points(points(2), 48)}) == 6
