"""Validation: the same numbers every time, and what they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from lbm_lora.imaging.metrics import psnr, ssim
from lbm_lora.model.build import LBMModel
from lbm_lora.training.data.dataset import PairDataset, open_data
from lbm_lora.training.loss import BridgeStep, objective_of
from lbm_lora.training.settings import TrainConfig
from lbm_lora.training.validation import ImageScores, Measured, Scores, Validator, measure, summary

Config = Callable[..., TrainConfig]


def run(validator: Validator, step: BridgeStep) -> tuple[Scores, Image.Image]:
    made = validator.run(step)
    assert made is not None
    return made


@pytest.fixture
def data(config: Config) -> PairDataset:
    return open_data(config(), "train", seed=0)


@pytest.fixture
def step(config: Config, model: LBMModel) -> BridgeStep:
    chosen = config(selected_timesteps=(250.0, 1000.0), prob=(0.1, 0.9))
    return BridgeStep(model=model, objective=objective_of(chosen, model.config), seed=0)


def measured_at(data: PairDataset, step: BridgeStep, index: int, steps: tuple[int, ...], lpips: Any = None) -> Measured:
    return measure(step, data[index], steps, lpips)


def test_scores_are_the_same_every_time_and_for_every_share(data: PairDataset, step: BridgeStep) -> None:
    validator = Validator(data, count=3, num_steps=(1, 2), lpips=None)
    torch.manual_seed(1)
    first, images = run(validator, step)
    torch.manual_seed(2)
    assert run(validator, step)[0] == first
    assert summary(step, [measured_at(data, step, index, (1, 2)) for index in (0, 2, 4)]) == first, "evenly spread"
    assert images.width > 4 * 256
    assert images.height > 3 * 256


def test_scores_are_means_and_the_loss_is_weighted(data: PairDataset, step: BridgeStep, model: LBMModel) -> None:
    measured = [measured_at(data, step, index, (1, 2), lambda a, b: (a - b).abs().mean((1, 2, 3))) for index in (0, 3)]
    scores = summary(step, measured)
    assert scores.samples == 2
    assert set(scores.losses) == {250.0, 1000.0}
    assert scores.loss == pytest.approx(0.1 * scores.losses[250.0] + 0.9 * scores.losses[1000.0])
    assert scores.losses[250.0] == pytest.approx(sum(one.losses[250.0] for one in measured) / 2)
    one = data[3]
    assert one.source is not None
    assert one.target is not None
    latent = model.encode(one.source)
    with torch.no_grad():
        end = latent - model.denoise(latent, torch.tensor([1000.0]))
    made = model.decode(end)[0].clamp(-1, 1)
    assert measured[1].images[1].psnr == pytest.approx(psnr(made, one.target[0]), rel=1e-4)
    assert measured[1].images[1].ssim == pytest.approx(ssim(made, one.target[0]), rel=1e-3)
    assert measured[1].images[1].lpips == pytest.approx(float((made - one.target[0]).abs().mean()), rel=1e-4)
    assert measured[1].images[2] != measured[1].images[1]
    assert [tile.size for tile in measured[0].tiles] == [(64, 64)] * 4


def test_masked_pairs_are_scored_within_their_mask(config: Config, step: BridgeStep) -> None:
    whole, masked = (open_data(config(mask_key=key), "train", seed=0) for key in (None, "mask.png"))
    first, second = (measured_at(data, step, 0, (1,)) for data in (whole, masked))
    assert first.images[1].psnr != second.images[1].psnr
    assert first.losses != second.losses


def scores(loss: float, psnr: float, lpips: float | None = None) -> Scores:
    made = ImageScores(psnr=psnr, ssim=0.5, lpips=lpips)
    return Scores(samples=1, losses={1000.0: loss}, loss=loss, images={1: made, 4: made})


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("loss", scores(0.1, 20), scores(0.2, 30)),
        ("psnr", scores(0.2, 30), scores(0.1, 20)),
        ("lpips", scores(0.2, 20, 0.1), scores(0.1, 30, 0.2)),
    ],
)
def test_larger_quality_is_better(metric: str, better: Scores, worse: Scores) -> None:
    assert better.quality(metric) > worse.quality(metric)


def test_a_stop_ends_it_after_the_pair_at_hand(data: PairDataset, step: BridgeStep) -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 2

    assert Validator(data, count=3, num_steps=(1,), lpips=None).run(step, stop=stop) is None
    assert len(asked) == 2
