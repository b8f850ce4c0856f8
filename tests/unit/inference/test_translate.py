"""Translating one image as the options of a command say, with a small random LBM."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from two_levels import two_level_model

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule, save_adapter
from lbm_lora.apply import ScaledAdapter
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.configs.model_options import ModelOptions
from lbm_lora.errors import AdapterError, WrongBaseError
from lbm_lora.inference.translate import TranslateSettings, put_in, read_adapters, translate_image
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.naming import ModuleName
from lbm_lora.progress import SILENT, LbmLoraWarning
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


Save = Callable[[str, Mapping[str, Tensor]], Path]
NAMES = ("b.attn1.to_q", "b.conv_in")


@pytest.fixture
def base(save: Save) -> Path:
    """Two weights."""
    return save("base.safetensors", {f"denoiser.{name}.weight": torch.ones(4, 6) for name in NAMES})


@pytest.fixture
def lora(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """`lora("a.safetensors", *NAMES)`: a LoRA of the base, or of one that is named."""
    with open_checkpoint(base) as checkpoint:
        digest = fingerprint(checkpoint.component()).digest

    def write(file: str, *names: str, made_from: str = digest, alpha: float = 2.0) -> Path:
        modules = {
            ModuleName(name): LoraModule(ModuleName(name), torch.ones(2, 6), torch.ones(4, 2), alpha) for name in names
        }
        metadata = AdapterMetadata(format="1", base_fingerprint=made_from)
        save_adapter(Adapter(modules, {}, prefix="denoiser.", metadata=metadata), tmp_path / file)
        return tmp_path / file

    return write


def read(base: Path, *loras: Path, **options: Any) -> list[ScaledAdapter]:
    with open_checkpoint(base) as checkpoint:
        return read_adapters(ModelOptions(lora_path=loras, **options), checkpoint, SILENT)[0]


def test_loras_are_read_with_their_scales_and_what_alpha_means(base: Path, lora: Callable[..., Path]) -> None:
    paths = lora("1.safetensors", *NAMES, alpha=6.0), lora("2.safetensors", NAMES[1])
    one, other = read(base, *paths, lora_scale=(0.5, -1.0))
    assert (one.lora_scale, other.lora_scale) == (0.5, -1.0)
    assert (set(one.adapter.modules), set(other.adapter.modules)) == (set(NAMES), {NAMES[1]})
    assert one.adapter.modules[ModuleName(NAMES[0])].alpha == 6.0
    (ranked,) = read(base, paths[0], lora_alpha_is="rank")
    assert ranked.adapter.modules[ModuleName(NAMES[0])].alpha == 2.0


def test_a_lora_that_does_not_belong_to_the_base_is_let_in_by_its_option_alone(
    base: Path, lora: Callable[..., Path]
) -> None:
    unmatched = lora("unmatched.safetensors", NAMES[0], "elsewhere")
    with pytest.raises(AdapterError, match="elsewhere"):
        read(base, unmatched, allow_other_base=True)
    other = lora("other.safetensors", NAMES[0], made_from="another")
    with pytest.raises(WrongBaseError):
        read(base, other, allow_unmatched=True)
    (found,) = read(base, unmatched, allow_unmatched=True)
    assert set(found.adapter.modules) == {NAMES[0]}
    with pytest.warns(LbmLoraWarning, match="another base"):
        (found,) = read(base, other, allow_other_base=True)
    assert set(found.adapter.modules) == {NAMES[0]}


def test_both_modes_give_one_output_and_fused_alone_changes_the_weights() -> None:
    module = LoraModule(ModuleName("conv_in"), torch.full((2, 4, 3, 3), 0.1), torch.full((16, 2, 1, 1), 0.1), 2.0)
    adapters = [ScaledAdapter(Adapter({module.name: module}, {}), 0.5)]
    state, timestep = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    options, outputs = ModelOptions(), dict[str, Tensor]()
    for mode in ("fused", "live"):
        model = two_level_model()
        before, weight = model.denoise(state, timestep), model.denoiser.get_parameter("conv_in.weight").clone()
        put_in(replace(options, mode=mode), LBMPipeline.from_model(model), adapters)
        outputs[mode] = model.denoise(state, timestep)
        assert not torch.allclose(outputs[mode], before, atol=1e-3)
        kept = any(torch.equal(tensor, weight) for tensor in model.denoiser.state_dict().values())
        assert kept == (mode == "live")
    torch.testing.assert_close(outputs["fused"], outputs["live"], rtol=1e-4, atol=1e-5)
