"""Translating tensors with a small random LBM."""

import math
from pathlib import Path

import pytest
import torch

from lbm_lora.errors import ImageError
from lbm_lora.model import bridge
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.pipeline import check_finite, encode_sources, follow_bridge, translate
from standins import TINY, write_base


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LBMModel:
    """A TINY stand-in in fp32, with enough bridge noise to see it."""
    folder = tmp_path_factory.mktemp("model")
    write_base(folder, TINY, dtype=torch.float32, bridge_noise_sigma=0.5)
    return load_model(folder, dtype=torch.float32)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_one_step_by_hand(model: LBMModel, images: torch.Tensor) -> None:
    source = model.encode(images[:1])
    with torch.no_grad():
        prediction = model.denoise(source, torch.tensor([1000.0]))
    expected = model.decode(source - prediction).clamp(-1, 1)
    assert torch.allclose(translate(model, images[:1]), expected, atol=1e-5)


@pytest.mark.parametrize("sample_posterior", [False, True])
def test_a_result_does_not_depend_on_its_neighbours(
    model: LBMModel, images: torch.Tensor, sample_posterior: bool
) -> None:
    together = translate(model, images, steps=2, seed=5, sample_posterior=sample_posterior)
    for index in range(3):
        alone = translate(model, images[index : index + 1], steps=2, seed=5, sample_posterior=sample_posterior)
        assert torch.equal(together[index], alone[0])


def test_the_seed_decides_the_noise_between_steps(model: LBMModel, images: torch.Tensor) -> None:
    one = images[:1]
    assert torch.equal(translate(model, one, steps=2, seed=1), translate(model, one, steps=2, seed=1))
    assert not torch.equal(translate(model, one, steps=2, seed=1), translate(model, one, steps=2, seed=2))
    assert torch.equal(translate(model, one, steps=1, seed=1), translate(model, one, steps=1, seed=2))


def test_encoding_is_the_mean_unless_sampling_is_asked_for(model: LBMModel, images: torch.Tensor) -> None:
    assert torch.equal(encode_sources(model, images, seed=1), encode_sources(model, images, seed=2))
    first, again, other = (encode_sources(model, images, seed=seed, sample_posterior=True) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, encode_sources(model, images))


def test_posterior_and_bridge_do_not_share_their_noise(model: LBMModel, images: torch.Tensor) -> None:
    latent = encode_sources(model, images[:1], seed=3)
    sampled = encode_sources(model, images[:1], seed=3, sample_posterior=True)
    drawn = (sampled - latent).flatten()
    between = bridge.standard_normal(latent, [torch.Generator().manual_seed(3)]).flatten()
    assert abs(float(torch.corrcoef(torch.stack([drawn, between]))[0, 1])) < 0.3


def test_the_global_random_state_is_left_alone(model: LBMModel, images: torch.Tensor) -> None:
    before = torch.random.get_rng_state()
    translate(model, images[:1], steps=2, sample_posterior=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_results_carry_no_gradient_and_stay_in_range(model: LBMModel, images: torch.Tensor) -> None:
    model.denoiser.requires_grad_(True)
    latent = follow_bridge(model, encode_sources(model, images[:1]), steps=2, seed=0)
    result = translate(model, images[:1], steps=2)
    model.denoiser.requires_grad_(False)
    assert not latent.requires_grad
    assert not result.requires_grad
    assert result.dtype == torch.float32
    assert float(result.abs().max()) <= 1


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, "fp16 ends at 65504, which the networks can leave: use torch_dtype bf16 or float."),
        (torch.bfloat16, "bf16 has room enough: a weight"),
        (torch.float32, "fp32 has room enough: a weight"),
    ],
)
def test_the_advice_about_values_that_are_not_finite_is_that_of_the_precision(dtype: torch.dtype, advice: str) -> None:
    check_finite(torch.ones(3), dtype, what="the output")
    for value in (math.nan, math.inf):
        with pytest.raises(ImageError) as caught:
            check_finite(torch.tensor([1.0, value]), dtype, what="the output")
        text = str(caught.value)
        assert text.startswith(f"the output holds 1 non-finite values of 2. {advice}")
        assert ("torch_dtype" in text) == (dtype == torch.float16)


def test_infinite_values_are_no_white_image(model: LBMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LBMModel, "decode", lambda self, latents, tiled: torch.full((1, 3, 64, 64), math.inf))
    with pytest.raises(ImageError, match="non-finite values"):
        translate(model, torch.zeros(1, 3, 64, 64))


def test_every_bucket_passes_the_networks(model: LBMModel, tmp_path: Path) -> None:
    for shape in ((40, 96), (32, 128), (56, 72), (48, 80), (32, 120)):
        assert translate(model, torch.zeros(1, 3, *shape)).shape == (1, 3, *shape)
