"""The points that a denoiser is measured at."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lbm_lora.fidelity.points import bridge_points, generator, image_latent, image_noise
from lbm_lora.imaging.buckets import to_bucket
from lbm_lora.model.bridge_pipeline import standard_normal
from lbm_lora.model.build import LBMModel

SCHEDULE = ((1000.0, 0.25), (500.0, 0.75))


def test_the_source_is_that_of_inference(model: LBMModel, images: tuple[Path, ...]) -> None:
    for size in (None, 64):
        fitted = to_bucket(Image.open(images[1]), size or model.size, step=model.pixels_per_latent)
        expected = model.encode(fitted)
        assert torch.equal(image_latent(model, images[1], size=size), expected)


def test_states_lie_on_the_bridge_to_the_models_own_prediction(model: LBMModel, images: tuple[Path, ...]) -> None:
    source = image_latent(model, images[0], size=64)
    points = list(bridge_points(model, source, SCHEDULE, image_noise(3, 2)))
    assert [(point.timestep, point.probability) for point in points] == list(SCHEDULE)
    assert torch.equal(points[0].state, source)
    with torch.no_grad():
        target = source - model.denoise(source, torch.tensor([1000.0]))
    noise = (points[1].state - (source + target) / 2) / (0.5 * 0.5)
    expected = standard_normal(source, [generator(3, 2, 500.0, "noise")])
    assert torch.allclose(noise, expected, atol=1e-4)
    assert not any(point.state.requires_grad for point in points)


def test_noise_depends_on_seed_image_and_timestep(model: LBMModel, images: tuple[Path, ...]) -> None:
    source = image_latent(model, images[0], size=64)

    def state(seed: int, image: int) -> Tensor:
        return list(bridge_points(model, source, SCHEDULE, image_noise(seed, image)))[1].state

    assert torch.equal(state(0, 1), state(0, 1))
    assert not torch.equal(state(0, 1), state(0, 2))
    assert not torch.equal(state(0, 1), state(1, 1))
    assert generator(0, 1, 500.0, "noise").initial_seed() != generator(0, 1, 250.0, "noise").initial_seed()
