"""Translating one image with a small random LBM."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from two_levels import two_level_model

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.apply import ScaledAdapter
from lbm_lora.inference.translate import TranslateSettings, put_in, translate_image
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.naming import ModuleName
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


def test_both_modes_give_one_output_and_fused_alone_changes_the_weights() -> None:
    module = LoraModule(ModuleName("conv_in"), torch.full((2, 4, 3, 3), 0.1), torch.full((16, 2, 1, 1), 0.1), 2.0)
    adapters = [ScaledAdapter(Adapter({module.name: module}, {}), 0.5)]
    state, timestep = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    outputs = dict[str, Tensor]()
    for mode in ("fused", "live"):
        model = two_level_model()
        before, weight = model.denoise(state, timestep), model.denoiser.get_parameter("conv_in.weight").clone()
        put_in(LBMPipeline.from_model(model), adapters, mode)
        outputs[mode] = model.denoise(state, timestep)
        assert not torch.allclose(outputs[mode], before, atol=1e-3)
        kept = any(torch.equal(tensor, weight) for tensor in model.denoiser.state_dict().values())
        assert kept == (mode == "live")
    torch.testing.assert_close(outputs["fused"], outputs["live"], rtol=1e-4, atol=1e-5)
