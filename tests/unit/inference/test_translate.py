"""Translating images with a small random LBM."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lbm_lora.errors import ConfigError, ImageError
from lbm_lora.imaging.buckets import to_bucket
from lbm_lora.inference.translate import TranslateSettings, to_source_size, translate_image
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.pipeline import translate
from lbm_lora.progress import LbmLoraWarning
from standins import TINY, write_base

SMALL = TranslateSettings(size=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LBMModel:
    """A TINY stand-in in fp32, with enough bridge noise to see it."""
    folder = tmp_path_factory.mktemp("model")
    write_base(folder, TINY, dtype=torch.float32, bridge_noise_sigma=0.5)
    return load_model(folder, dtype=torch.float32)


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_the_size_is_the_models_own(model: LBMModel, photo: Image.Image) -> None:
    assert model.size == 128
    assert to_bucket(photo, model.size, step=8).shape == (1, 3, 96, 160)
    assert to_bucket(photo, 64, step=8).shape == (1, 3, 48, 80)


def test_an_image_keeps_its_size(model: LBMModel, photo: Image.Image) -> None:
    result = translate_image(model, photo, SMALL)
    assert result.size == photo.size
    assert result.mode == "RGB"
    expected = to_source_size(translate(model, to_bucket(photo, 64, step=8)), photo)
    assert np.array_equal(np.asarray(result), np.asarray(expected))


def test_a_mask_keeps_the_source_where_it_is_black(model: LBMModel, photo: Image.Image) -> None:
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (40, 0, 83, 50))
    pasted = np.asarray(translate_image(model, photo, SMALL, mask=mask))
    whole = np.asarray(translate_image(model, photo, SMALL))
    assert np.array_equal(pasted[:, :40], np.asarray(photo)[:, :40])
    assert np.array_equal(pasted[:, 40:], whole[:, 40:])
    assert not np.array_equal(whole[:, :40], np.asarray(photo)[:, :40])


def test_tiles_are_asked_for(model: LBMModel, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, asked = LBMModel.decode, []

    def recording(self: LBMModel, latents: torch.Tensor, *, tiled: bool | None = None) -> torch.Tensor:
        asked.append(tiled)
        return decode(self, latents, tiled=tiled)

    monkeypatch.setattr(LBMModel, "decode", recording)
    for tiled in (None, True, False):
        translate_image(model, photo, replace(SMALL, tiled=tiled))
    assert asked == [None, True, False]


def test_nan_is_no_black_image(model: LBMModel, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LBMModel, "denoise", lambda self, latents, timestep: latents * float("nan"))
    with pytest.raises(ImageError, match="non-finite values"):
        translate_image(model, photo, SMALL)


def test_steps_are_checked(model: LBMModel, photo: Image.Image) -> None:
    with pytest.warns(LbmLoraWarning, match=r"^3 steps leave the timesteps that the model was trained on"):
        translate_image(model, photo, replace(SMALL, steps=3))
    with pytest.raises(ConfigError, match=r"^0 steps cannot be taken\. Use 1 or more\.$"):
        translate_image(model, photo, TranslateSettings(steps=0))
