"""LoRAs in the formats of diffusers and kohya, read by diffusers; files of diffusers read by us."""

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from packaging.version import Version
from safetensors.torch import load_file

import mini
from foreign import DIFFUSERS, HELD, KOHYA, Reading
from lbm_lora import load_adapter
from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.progress import LbmLoraWarning

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]  # warnings of readers are not ours
KNOWS_EVERY_NAME = Version(diffusers.__version__) >= Version("0.39.0")
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("reading", mini.params(DIFFUSERS))
def test_diffusers_reads_our_file(tmp_path: Path, reading: Reading) -> None:
    lora = mini.lora()
    path = lora.save(tmp_path / WEIGHTS, reading.to, **reading.wishes)
    unet = mini.denoiser()
    if "FOLDER" in reading.call:
        unet.load_lora_adapter(str(path.parent), weight_name=path.name, prefix="unet")
    else:
        unet.load_lora_adapter(load_file(path) if "STATE_DICT" in reading.call else str(path), prefix="unet")
    if "fuse_lora" in reading.call:
        unet.fuse_lora()
        unet.unload_lora()
    assert mini.difference(unet, lora.filtered(HELD[reading.holds])) <= mini.BOUND


@pytest.mark.skipif(not KNOWS_EVERY_NAME, reason="it does not know every name")
@pytest.mark.parametrize("reading", mini.params(KOHYA))
def test_diffusers_converts_the_names_of_kohya(tmp_path: Path, reading: Reading) -> None:
    lora = mini.lora(attention_alpha=3.0)
    path = lora.save(tmp_path / "x.safetensors", reading.to, **reading.wishes)
    assert mini.difference(converted(path), lora.filtered(HELD[reading.holds])) <= mini.BOUND


@pytest.mark.slow
@pytest.mark.skipif(not KNOWS_EVERY_NAME, reason="it does not know every name")
def test_diffusers_ignores_alphas_of_attentions_as_our_note_says(tmp_path: Path) -> None:
    """Where this fails, the note of formats/kohya.py holds up to this version only."""
    lora = mini.lora(HELD["factors"])
    with pytest.warns(LbmLoraWarning, match="diffusers reads alpha 3 for 5 attention layers with another one"):
        path = lora.save(tmp_path / "x.safetensors", "kohya")
    assert mini.difference(converted(path), lora) > 0.01


def converted(path: Path) -> torch.nn.Module:
    """The denoiser with a file of kohya's names, loaded as diffusers does."""
    unet = mini.denoiser()
    state, alphas, *_ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(load_file(path), unet_config=unet.config)
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    return unet


@pytest.mark.slow
def test_we_read_what_diffusers_writes(tmp_path: Path) -> None:
    lora = mini.lora(lambda name: not is_norm(name))
    path = lora.save(tmp_path / WEIGHTS, "diffusers", biases="lora_bias")
    unet = mini.denoiser()
    unet.load_lora_adapter(str(path), prefix="unet", adapter_name="default")
    unet.save_lora_adapter(tmp_path / "saved")
    (written,) = (tmp_path / "saved").glob("*.safetensors")
    assert mini.difference(unet, load_adapter(written)) <= mini.BOUND
