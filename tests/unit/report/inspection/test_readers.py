"""Who reads which format: the table of docs/files.md. What the programs do is measured in tests/interop."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.configs.values import FormatName
from lbm_lora.report.inspection.readers import readers_of

Build = Callable[..., Adapter]
Spectrum = Callable[..., LoraModule]


@pytest.mark.parametrize(
    ("file_format", "read_by"),
    [
        ("native", set()),
        ("comfyui", {"ComfyUI"}),
        ("kohya", {"diffusers"}),
        ("kohya-diffusers", {"ComfyUI", "diffusers", "LyCORIS"}),
        ("diffusers", {"diffusers"}),
        ("peft", {"PEFT"}),
        ("lycoris", {"LyCORIS"}),
    ],
)
def test_factors_alone(file_format: FormatName, read_by: set[str], build: Build, spectrum: Spectrum) -> None:
    adapter = replace(build(spectrum("conv_in", [1.0])), file_format=file_format)
    assert {reader.name for reader in readers_of(adapter) if reader.reads == "all"} == {"lbm-lora", *read_by}


def test_what_diffusers_does_to_dense_deltas(build: Build, spectrum: Spectrum) -> None:
    dense = {name: torch.ones(3) for name in ("conv_in.bias", "conv_norm_out.weight")}
    adapter = build(spectrum("conv_in", [1.0]), dense=dense)
    found = {
        name: next(r for r in readers_of(replace(adapter, file_format=name)) if r.name == "diffusers")
        for name in ("diffusers", "kohya")
    }
    assert (found["diffusers"].reads, found["diffusers"].note) == (
        "part",
        "it ignores 1 dense delta of norms or of layers without factors",
    )
    assert (found["kohya"].reads, found["kohya"].note) == ("nothing", "its SDXL converter stops at 2 dense deltas")


def test_diffusers_reads_the_biases_of_layers_with_factors(build: Build, spectrum: Spectrum) -> None:
    """Those are `lora_B.bias`; a matrix is dense here and factors in the file, and so is its layer's bias."""
    dense = {"conv_in.bias": torch.ones(3), "conv_out.weight": torch.ones(3, 4), "conv_out.bias": torch.ones(3)}
    adapter = replace(build(spectrum("conv_in", [1.0]), dense=dense), file_format="diffusers")
    assert next(r for r in readers_of(adapter) if r.name == "diffusers").reads == "all"


def test_the_options_of_convert_say_what_becomes_of_biases_and_norms(build: Build, spectrum: Spectrum) -> None:
    dense = {"conv_in.bias": torch.ones(3), "conv_norm_out.weight": torch.ones(4)}
    adapter = build(spectrum("conv_in", [1.0]), dense=dense)
    assert [reader.options for reader in readers_of(adapter)] == [
        "",
        "--to comfyui",
        "--to diffusers --biases lora_bias --norms drop",
        "--to peft --biases lora_bias --norms drop",
        "--to lycoris --biases drop",
    ]


def test_mixed_ranks_need_padding_or_a_recent_diffusers(build: Build, spectrum: Spectrum) -> None:
    adapter = replace(build(spectrum("a", [1.0]), spectrum("b", [1.0, 0.5])), file_format="diffusers")
    diffusers = next(reader for reader in readers_of(adapter) if reader.name == "diffusers")
    assert diffusers.note == "before 0.40 only if padded to one rank"


@pytest.mark.parametrize("file_format", get_args(FormatName))
def test_a_program_that_does_not_read_all_has_a_format_to_convert_to(
    file_format: FormatName, build: Build, spectrum: Spectrum
) -> None:
    adapter = replace(build(spectrum("conv_in", [1.0])), file_format=file_format)
    for reader in readers_of(adapter):
        assert reader.convert_to in get_args(FormatName) if reader.reads != "all" else not reader.convert_to


def test_nobody_else_reads_eight_bits(build: Build, spectrum: Spectrum) -> None:
    adapter = build(spectrum("conv_in", [1.0])).cast(torch.int8)
    assert [reader.name for reader in readers_of(adapter) if reader.reads == "all"] == ["lbm-lora"]
