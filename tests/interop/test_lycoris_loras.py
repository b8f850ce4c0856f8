"""LoRAs in the formats of LyCORIS and of kohya with the names of diffusers, read by LyCORIS; its files read by us."""

from pathlib import Path

import lycoris
import lycoris.utils
import pytest
import torch
from safetensors.torch import load_file

import mini
from foreign import HELD, LYCORIS, LYCORIS_FILES, Reading, Writing
from lbm_lora import load_adapter

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]  # warnings of readers are not ours
MODULES, NORMS = 792, 256


@pytest.mark.parametrize("reading", mini.params(LYCORIS))
def test_lycoris_reads_our_file(tmp_path: Path, reading: Reading, capsys: pytest.CaptureFixture[str]) -> None:
    lora = mini.lora()
    path = lora.save(tmp_path / "x.safetensors", reading.to, **reading.wishes)
    unet = mini.denoiser()
    if "merge_to" in reading.call:
        network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), unet)
        assert len(network.loras) == MODULES + NORMS
        network.merge_to(1.0)
    else:
        lycoris.utils.merge([], unet, load_file(path), 1.0)
        assert f"{MODULES} Modules been merged" in capsys.readouterr().out
    assert mini.difference(unet, lora.filtered(HELD[reading.holds])) <= mini.BOUND


@pytest.mark.parametrize("writing", mini.params(LYCORIS_FILES))
def test_we_read_what_lycoris_writes(tmp_path: Path, writing: Writing) -> None:
    unet = mini.denoiser()
    network = lycoris.create_lycoris(
        unet, 1.0, linear_dim=4, linear_alpha=3, conv_dim=2, conv_alpha=1, **writing.options
    )
    network.apply_to()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    path = tmp_path / "x.safetensors"
    network.save_weights(str(path), torch.float32, {})
    base = mini.base() if writing.needs_base else None
    assert mini.difference(unet, load_adapter(path, base=base)) <= mini.BOUND
