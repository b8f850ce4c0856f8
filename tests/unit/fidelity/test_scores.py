"""Outputs of several variants measured against the tuned model's."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from two_levels import translate

from lbm_lora.errors import ConfigError
from lbm_lora.fidelity.answers import Answer, Question, answer, question
from lbm_lora.fidelity.comparison import compared, scores
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.fidelity.outputs import OutputComparison
from lbm_lora.imaging.metrics import psnr, ssim
from lbm_lora.model.build import LBMModel, load_model
from standins import TINY, write_base, write_tuned

TIMESTEPS = (1000.0, 750.0, 500.0, 250.0)
SCHEDULE = tuple((timestep, 0.25) for timestep in TIMESTEPS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LBMModel]:
    """Base and tuned TINY stand-ins in fp32."""
    folder = tmp_path_factory.mktemp("models")
    write_base(folder / "base", TINY, dtype=torch.float32)
    write_tuned(folder / "tuned", TINY, dtype=torch.float32)
    return {name: load_model(folder / name, dtype=torch.float32) for name in ("base", "tuned")}


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    """Two images of different sizes, values in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, *size, generator=generator) * 2 - 1 for size in ((64, 64), (48, 80))]


@pytest.fixture(scope="module")
def asked(models: dict[str, LBMModel], images: list[Tensor]) -> list[Question]:
    """What all models are asked about the images, by the tuned one."""
    latents = [models["tuned"].encode(image) for image in images]
    return [question(models["tuned"], latent, SCHEDULE, seed=4) for latent in latents]


def flat(value: float, *, steps: tuple[int, ...] = (1,)) -> Answer:
    """Outputs of one flat colour; a step more makes it ten times as strong."""
    return Answer(
        predictions={1000.0: torch.full((4, 2, 2), 1 + value), 500.0: torch.full((4, 2, 2), 1 + 2 * value)},
        images={count: torch.full((3, 16, 16), value * 10**place) for place, count in enumerate(steps)},
    )


def compare(outputs: Mapping[str, list[Answer]], names: list[str], *, seed: int = 0) -> OutputComparison:
    """All of them against `tuned`."""
    tuned = outputs["tuned"]
    found = {
        variant: [scores(variant, answered, wanted) for answered, wanted in zip(answers, tuned, strict=True)]
        for variant, answers in outputs.items()
        if variant != "tuned"
    }
    return compared(found, tuned, names=names, reference="tuned", seed=seed, dtype="bf16", device="cpu")


def test_a_question_holds_points_of_the_bridge_to_the_references_result(
    models: dict[str, LBMModel], asked: list[Question]
) -> None:
    """Equation 5 by hand, with the one-step result of the tuned model as the target."""
    tuned, noise_sigma = models["tuned"], models["tuned"].config.bridge_noise_sigma
    for posed in asked:
        assert [point.timestep for point in posed.points] == list(TIMESTEPS)
        assert torch.equal(posed.points[0].state, posed.source)
        with torch.no_grad():
            target = posed.source - tuned.denoise(posed.source, torch.tensor([1000.0]))
        generator = torch.Generator().manual_seed(4)
        for timestep, state in ((point.timestep, point.state) for point in posed.points):
            noise = torch.randn(posed.source.shape[1:], generator=generator)
            sigma = timestep / 1000
            clean = sigma * posed.source + (1 - sigma) * target
            expected = clean + noise_sigma * math.sqrt(sigma * (1 - sigma)) * noise
            assert torch.allclose(state, expected, atol=1e-6)
            assert timestep == 1000 or not torch.allclose(state, clean, atol=1e-4)


def test_an_answer_is_the_pipelines(models: dict[str, LBMModel], images: list[Tensor], asked: list[Question]) -> None:
    """The shared first call changes no bit."""
    model = models["tuned"]
    for image, posed in zip(images, asked, strict=True):
        found = answer(model, posed, (1, 2), seed=9)
        assert list(found.images) == [1, 2]
        for steps, made in found.images.items():
            assert torch.equal(made, translate(model, image, steps=steps, seed=9)[0])
        for point in posed.points:
            with torch.no_grad():
                expected = model.denoise(point.state, torch.tensor([point.timestep]))[0]
            assert torch.equal(found.predictions[point.timestep], expected)


def test_the_scores_are_those_of_the_images(models: dict[str, LBMModel], asked: list[Question]) -> None:
    found, wanted = (answer(models[name], asked[0], (1, 2)) for name in ("base", "tuned"))
    mask = torch.zeros(64, 64)
    mask[20:40, 20:40] = 1
    scored = scores("base", found, wanted, mask=mask)
    assert [score.timestep for score in scored.denoiser] == list(TIMESTEPS)
    for score in scored.denoiser:
        expected = relative_error(found.predictions[score.timestep], wanted.predictions[score.timestep])
        assert score.error == expected
        assert 0 < expected < 10
    assert [score.steps for score in scored.images] == [1, 2]
    for score in scored.images:
        one, other = found.images[score.steps], wanted.images[score.steps]
        assert (score.psnr, score.ssim) == (psnr(one, other), ssim(one, other))
        assert (score.mask_psnr, score.mask_ssim) == (psnr(one, other, mask), ssim(one, other, mask))
        assert score.lpips is None
    same = scores("tuned", wanted, wanted)
    assert {score.psnr for score in same.images} == {math.inf}
    assert {score.error for score in same.denoiser} == {0.0}
    assert same.images[0].mask_psnr is None


def test_nothing_to_compare_is_said() -> None:
    with pytest.raises(ConfigError, match="nothing to compare: 0 images and 1 variants"):
        compare({"base": [], "tuned": []}, [])
    with pytest.raises(ConfigError, match=r"1 images and 0 variants\."):
        compare({"tuned": [flat(0.0)]}, ["a"])
