"""The facts as a reader says them."""

from collections.abc import Callable
from dataclasses import replace

import torch

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import AdapterError, Option
from lbm_lora.report.inspection.adapters import adapter_facts
from lbm_lora.report.inspection.files import file_facts
from lbm_lora.report.inspection.relation_wording import fit_lines
from lbm_lora.report.inspection.relations import Fit
from lbm_lora.report.inspection.values import FileFacts
from lbm_lora.report.inspection.wording import file_facts_of, file_line, header_lines

Build = Callable[..., Adapter]
Spectrum = Callable[..., LoraModule]


def file_of(adapter: Adapter) -> FileFacts:
    """The facts of a file that holds an adapter, its header aside."""
    with open_checkpoint({"a": torch.ones(1)}) as checkpoint:
        plain = file_facts(checkpoint, adapter)
    return replace(plain, nbytes=2_000_000, adapter=adapter_facts(adapter, 2_000_000, {"b" * 32: "base.safetensors"}))


def test_ranks_and_scalings(build: Build, spectrum: Spectrum) -> None:
    several = build(spectrum("a", [1.0]), spectrum("b", [2.0, 1.0, 0.5], alpha=6.0), spectrum("c", [1.0, 0.5, 0.2]))
    facts = dict(file_facts_of(file_of(several)))
    assert facts["ranks"] == "1 to 3, median 3: 1 in 1, 3 in 2"
    assert facts["alpha"] == "scaling (alpha / rank) 1 in 2, 2 in 1"
    one = dict(file_facts_of(file_of(build(spectrum("a", [1.0])))))
    assert (one["ranks"], one["alpha"]) == ("1 everywhere", "equal to the rank everywhere: scaling 1")


def test_where_it_comes_from(build: Build, spectrum: Spectrum) -> None:
    metadata = AdapterMetadata("1", "b" * 32, "", "c" * 32)
    facts = dict(file_facts_of(file_of(build(spectrum("a", [1.0]), metadata=metadata))))
    assert facts["written by"] == "lbm-lora, format 1"
    assert facts["base"] == "bbbbbbbbbbbb, base.safetensors"
    assert facts["tuned"] == "cccccccccccc, not known"


def test_a_file_of_another_program(build: Build, spectrum: Spectrum) -> None:
    file = file_of(replace(build(spectrum("conv_in", [1.0])), file_format="comfyui"))
    assert file_line(file) == "a LoRA in ComfyUI's format, 2.00 MB"
    facts = dict(file_facts_of(file))
    assert "written by" not in facts
    assert facts["base"] == "not recorded"
    assert facts["read by"] == "lbm-lora, ComfyUI"
    assert facts["for diffusers"] == "lbm-lora convert --lora_path IN --to diffusers --save_to OUT"
    assert [label for label in facts if label.startswith("for ")] == ["for diffusers", "for PEFT", "for LyCORIS"]
    assert facts["not touched"].startswith("1,675 of LBM's 1,676 tensors (741 linear, 512 norm, 372 bias, 50 conv): ")


def test_why_a_file_is_not_read_with_the_option_of_the_front_end() -> None:
    with open_checkpoint({"a": torch.ones(1)}) as checkpoint:
        file = file_facts(checkpoint, AdapterError("It is a DoRA. Give ", Option("base_model_path"), "."))
    spelt = dict(file_facts_of(file, lambda option: f"--{option.name}"))
    assert spelt["not read"] == "It is a DoRA. Give --base_model_path."


def test_a_fit_and_why_there_is_none() -> None:
    assert dict(fit_lines(Fit(matched=3, unmatched=(), mismatched=(), base="base"))) == {
        "fits": "yes",
        "names": "3 match by name and shape",
        "base": "this is the checkpoint that the LoRA was made from",
    }
    other = Fit(matched=1, unmatched=("x",), mismatched=("y", "z"), base="other", differing=("a.weight",))
    assert dict(fit_lines(other)) == {
        "fits": "no",
        "names": "1 match by name and shape",
        "unmatched": "1 name: x",
        "shapes": "2 parameters: y, z of another shape",
        "base": "the LoRA was made from another base; different here: 1 tensor: a.weight",
    }


def test_the_header_is_unpacked_and_escaped() -> None:
    header = {
        "z\x1b[2J": "\x1b]0;x\x07",
        "deep": "{" * 100_000,
        "lbm_lora_settings": '{"rank":8,"dense":true,"exclude":[],"sizes":["1","2"],"share":0.25}',
        "list": '["a"]',
    }
    lines = header_lines(header, left_out=("deep",))
    assert lines[0] == ("lbm_lora_settings", "rank 8, dense yes, sizes 1 2, share 0.25")
    assert ("z\\x1b[2J", "\\x1b]0;x\\x07") in lines
    assert ("list", '["a"]') in lines
    assert dict(header_lines(header))["deep"] == "{" * 100_000
