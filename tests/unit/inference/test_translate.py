"""Translating one image as the options of a command say, with a small random LBM."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbm_lora.errors import ConfigError, ImageError
from lbm_lora.inference.translate import TranslateSettings, translate_image
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.progress import LbmLoraWarning
from standins import TINY, write_base

SMALL = TranslateSettings(size=64)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> LBMPipeline:
    """A TINY stand-in in fp32, with enough bridge noise to see it."""
    folder: Path = tmp_path_factory.mktemp("model")
    write_base(folder, TINY, dtype=torch.float32, bridge_noise_sigma=0.5)
    return LBMPipeline.from_checkpoint(folder, torch_dtype="float")


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_the_size_is_the_models_own(pipe: LBMPipeline, photo: Image.Image) -> None:
    assert pipe.size == 128
    assert pipe.bucket(*photo.size) == (160, 96)
    assert pipe.bucket(*photo.size, 64) == (80, 48)


def test_an_image_keeps_its_size_and_the_settings_reach_the_pipeline(pipe: LBMPipeline, photo: Image.Image) -> None:
    settings = TranslateSettings(size=64, steps=2, seed=3, keep_detail=0.5, match_color=0.25, sample_posterior=True)
    result = translate_image(pipe, photo, settings)
    assert (result.size, result.mode) == (photo.size, "RGB")
    shares: dict[str, Any] = {"keep_detail": 0.5, "match_color": 0.25}
    wanted = pipe(photo, num_inference_steps=2, seed=3, size=64, sample_posterior=True, **shares).images[0]
    assert np.array_equal(np.asarray(result), np.asarray(wanted))
    changes = ({"steps": 1}, {"seed": 4}, {"size": 72}, {"sample_posterior": False})
    for change in (*changes, {"keep_detail": 0.0}, {"match_color": 0.0}):
        other = translate_image(pipe, photo, replace(settings, **change))
        assert not np.array_equal(np.asarray(result), np.asarray(other))


def test_a_mask_keeps_the_source_where_it_is_black(pipe: LBMPipeline, photo: Image.Image) -> None:
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (40, 0, 83, 50))
    pasted = np.asarray(translate_image(pipe, photo, SMALL, mask=mask))
    whole = np.asarray(translate_image(pipe, photo, SMALL))
    assert np.array_equal(pasted[:, :40], np.asarray(photo)[:, :40])
    assert np.array_equal(pasted[:, 40:], whole[:, 40:])
    assert not np.array_equal(whole[:, :40], np.asarray(photo)[:, :40])


def test_tiles_are_asked_for(pipe: LBMPipeline, photo: Image.Image) -> None:
    for tiled in (True, False, None):
        translate_image(pipe, photo, replace(SMALL, tiled=tiled))
        assert pipe.tiled == tiled


def test_the_pipelines_own_bar_is_off(
    pipe: LBMPipeline, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    translate_image(pipe, photo, SMALL)
    assert capsys.readouterr().err == ""


def test_nan_is_no_black_image(pipe: LBMPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LBMPipeline, "_denoise", lambda self, latents, timestep: latents * float("nan"))
    with pytest.raises(ImageError, match=r"^the model's output holds \d+ non-finite values"):
        translate_image(pipe, photo, SMALL)


def test_steps_and_size_are_checked(pipe: LBMPipeline, photo: Image.Image) -> None:
    with pytest.warns(LbmLoraWarning, match=r"^3 steps call the denoiser at untrained timesteps"):
        translate_image(pipe, photo, replace(SMALL, steps=3))
    with pytest.raises(ConfigError, match=r"^num_inference_steps must be 1 or more, got 0\.$"):
        translate_image(pipe, photo, TranslateSettings(steps=0))
    with pytest.raises(ConfigError, match=r"^size 63 is too small for the buckets\. Use 64 or more\.$"):
        translate_image(pipe, photo, TranslateSettings(size=63))
