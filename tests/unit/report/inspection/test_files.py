"""What any file is called, what it weighs, and whether it is read as a LoRA."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.adapter import Adapter
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import AdapterError
from lbm_lora.report.inspection.files import file_facts, read_as_lora
from lbm_lora.report.inspection.values import FileFacts

Save = Callable[[str, Mapping[str, Tensor]], Path]


def facts_of(path: Path) -> FileFacts:
    with open_checkpoint(path) as checkpoint:
        return file_facts(checkpoint, read_as_lora(checkpoint, "auto"))


def test_a_lora_and_its_bytes(save: Save) -> None:
    path = save("l.safetensors", {"a.lora_up.weight": torch.ones(3, 2), "a.lora_down.weight": torch.ones(2, 4)})
    found = facts_of(path)
    assert (found.kind, found.tensors, found.files) == ("a LoRA", 2, ("l.safetensors",))
    assert found.nbytes == path.stat().st_size
    assert found.nbytes - found.header_nbytes == 4 * (6 + 8)
    assert found.dtypes == {"fp32": 2}


def test_dense_deltas_alone_are_a_lora(save: Save) -> None:
    with open_checkpoint(save("l.safetensors", {"a.diff": torch.ones(3)})) as checkpoint:
        assert isinstance(read_as_lora(checkpoint, "auto"), Adapter)


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"denoiser.a.weight": torch.ones(2)}, "an LBM checkpoint"),
        ({"layer.weight": torch.ones(2)}, "a file of tensors of no known kind"),
        ({}, "a file without tensors"),
    ],
)
def test_files_that_are_no_lora(tensors: dict[str, Tensor], kind: str, save: Save) -> None:
    found = facts_of(save("x.safetensors", tensors))
    assert (found.kind, found.refusal) == (kind, None)


def test_a_lora_that_cannot_be_read_says_why(save: Save) -> None:
    found = facts_of(save("x.safetensors", {"unet:0:up": torch.ones(2)}))
    assert found.kind.startswith("a LoRA in the format of cloneofsimo's lora")
    assert isinstance(found.refusal, AdapterError)


def test_statistics_are_named(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "s.safetensors", metadata={"lbm_lora_statistics": "1"})
    found = facts_of(tmp_path / "s.safetensors")
    assert (found.kind, found.refusal) == ("a file of calibration statistics", None)


def test_the_header_without_the_digests_of_thousands_of_tensors(tmp_path: Path) -> None:
    metadata = {"z": "1", "a": "2", "lbm_lora_base_tensors": "0" * 13_000}
    save_file({"denoiser.a.weight": torch.ones(2)}, tmp_path / "x.safetensors", metadata=metadata)
    assert facts_of(tmp_path / "x.safetensors").header == {"a": "2", "z": "1"}


def test_a_state_dict_has_no_files() -> None:
    with open_checkpoint({"denoiser.a.weight": torch.ones(2)}) as checkpoint:
        found = file_facts(checkpoint, read_as_lora(checkpoint, "auto"))
    assert (found.files, found.nbytes, found.header_nbytes) == ((), 8, 0)
