"""Twins of a LoRA in other formats: what they hold, and what they leave out with a warning."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule, load_adapter, save_adapter
from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.adapter.twins import plan_twins, twin_path, write_twins
from lbm_lora.choices import ForeignFormat
from lbm_lora.errors import OutputError
from lbm_lora.files import Outputs
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning

HELD = {"comfyui": (1, 2), "lycoris": (0, 2), "diffusers": (1, 0), "peft": (1, 0)}
"""Format -> biases and norm parameters that a twin keeps."""


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """One module with its bias, and a norm."""
    name = ModuleName("conv_in")
    norm = {ParamName(f"mid_block.resnets.0.norm1.{leaf}"): torch.ones(8) for leaf in ("weight", "bias")}
    module = LoraModule(name, torch.ones(2, 4, 3, 3), torch.ones(8, 2, 1, 1), 3.0)
    adapter = Adapter({name: module}, {ParamName("conv_in.bias"): torch.ones(8), **norm}, prefix="denoiser.")
    return adapter.save(tmp_path / "x.safetensors")


@pytest.mark.parametrize("to", get_args(ForeignFormat))
@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
def test_a_twin_holds_what_its_format_can(lora: Path, to: ForeignFormat) -> None:
    (twin,) = write_twins(lora, [to])
    assert twin.path == twin_path(lora, to)
    found, given = load_adapter(twin.path), load_adapter(lora)
    norms = sum(map(is_norm, found.dense))
    assert (len(found.dense) - norms, norms) == HELD.get(to, (0, 0))
    assert set(found.dense) | set(twin.dropped) == set(given.dense)
    for name in found.params:
        one, other = found.delta(name), given.delta(name)
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_what_a_twin_leaves_out_is_one_warning_that_counts(lora: Path) -> None:
    with pytest.warns(LbmLoraWarning) as warned:
        write_twins(lora, ["kohya"])
    path = lora.with_name("x.kohya.safetensors")
    assert [str(one.message) for one in warned] == [
        f"{path} leaves out 1 bias and 2 norm parameters, which the format kohya cannot hold as changes."
    ]


def test_a_twin_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    name = ModuleName("not.of.a.unet")
    path = Adapter({name: LoraModule(name, torch.ones(2, 4), torch.ones(8, 2), 3.0)}, {}).save(
        tmp_path / "x.safetensors"
    )
    with pytest.warns(LbmLoraWarning, match=r"x\.kohya\.safetensors was not written: .*not\.of\.a\.unet"):
        assert write_twins(path, ["kohya"]) == ()


@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
@pytest.mark.parametrize("to", ["comfyui", "peft"])
def test_a_twin_of_what_a_training_run_has_saved_counts_as_saved_by_it(
    lora: Path, tmp_path: Path, to: ForeignFormat
) -> None:
    adapter, saved = load_adapter(lora), tmp_path / "last.safetensors"
    save_adapter(replace(adapter, metadata=replace(adapter.metadata, facts={STEP_KEY: "100 0123"})), saved)
    write_twins(saved, (to,))
    outputs, own = Outputs(), Outputs(replaces_trained=True)
    plan_twins(outputs, [saved], (to, to))
    plan_twins(own, [saved], (to,))
    own.check()
    with pytest.raises(OutputError, match="exists, and a training run has saved it"):
        outputs.check()
    peft = twin_path(lora, "peft")
    peft.write_bytes(b"")
    with pytest.raises(OutputError, match="an adapter of PEFT is a folder"):
        plan_twins(Outputs(), [lora], ["peft"])
