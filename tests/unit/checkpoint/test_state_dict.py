"""State dicts in memory as checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import CheckpointError
from smallnet import small_state


def test_a_state_dict_reads_as_its_file_does(tmp_path: Path) -> None:
    save_file(small_state(1, "denoiser."), tmp_path / "s.safetensors")
    with open_checkpoint(tmp_path / "s.safetensors") as file, open_checkpoint(small_state(1, "denoiser.")) as state:
        assert state.specs == {key: file.specs[key] for key in state.specs}
        assert state.specs.keys() == file.specs.keys()
        assert fingerprint(state.component()) == fingerprint(file.component())
        assert state.component().prefix == "denoiser."
        assert (state.in_memory, state.files, file.in_memory) == (True, (), False)


def test_wrappers_of_trainers_are_left_out_of_its_keys() -> None:
    state = {f"model.denoiser._orig_mod.{key}": tensor for key, tensor in small_state(1).items()}
    assert list(open_checkpoint(state).specs) == [f"denoiser.{key}" for key in small_state(1)]


def test_parameters_and_strided_tensors_are_read_as_plain_ones() -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    checkpoint = open_checkpoint({"a": weight, "b": weight.detach().T})
    read, turned = checkpoint.read("a"), checkpoint.read("b")
    assert not read.requires_grad
    assert type(read) is Tensor
    assert turned.is_contiguous()
    assert torch.equal(turned, read.T)


def test_its_tensors_are_not_copied() -> None:
    state = small_state(1)
    assert open_checkpoint(state).read("point.bias").data_ptr() == state["point.bias"].data_ptr()


def test_what_is_no_state_dict_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^tuned state dict holds no tensors\.$"):
        open_checkpoint({}, label="tuned state dict")
    loaded: dict[str, Any] = {**small_state(1), "epoch": 3}
    text = r"^state dict: epoch is of type int\. A state dict holds tensors by name: give module\.state_dict\(\)\.$"
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(loaded)


def test_an_open_checkpoint_opened_again_can_be_closed_by_itself() -> None:
    first = open_checkpoint(small_state(1))
    with open_checkpoint(first) as second:
        assert second.specs == first.specs
    assert torch.equal(first.read("point.bias"), small_state(1)["point.bias"])
    with pytest.raises(CheckpointError):
        second.read("point.bias")
