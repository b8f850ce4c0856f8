"""What is measured of a LoRA: norms and spectra against the dense delta, bytes, truncation, and broken values."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule, load_adapter, save_adapter
from lbm_lora.report.inspection.adapters import adapter_facts

Build = Callable[..., Adapter]
Spectrum = Callable[..., LoraModule]


def test_norms_are_those_of_the_dense_deltas(build: Build, rand: Callable[..., Tensor]) -> None:
    conv = LoraModule(name="down_blocks.0.conv1", down=rand(3, 4, 3, 3), up=rand(8, 3, 1, 1), alpha=1.5)  # pyright: ignore[reportArgumentType]
    adapter = build(conv, dense={"down_blocks.0.conv1.bias": rand(8)})
    found = adapter_facts(adapter, adapter.nbytes, {})
    wanted = {name: float(adapter.delta(name).norm()) for name in adapter.params}  # pyright: ignore[reportOptionalMemberAccess]
    assert {row.name: row.norm for row in found.deltas} == pytest.approx(wanted, rel=1e-5)
    assert found.norm == pytest.approx(math.hypot(*wanted.values()))
    (block,) = found.blocks
    assert (block.block, block.tensors, block.ranks, block.share) == ("down_blocks.0", 2, 3, pytest.approx(1))
    assert found.kinds == {"conv 3x3": 1, "bias": 1}
    assert found.scalings == {0.5: 1}


def test_ranks_that_carry_the_energy(build: Build, spectrum: Spectrum) -> None:
    adapter = build(spectrum("a.proj", [10.0, 3.0, 0.5, 0.1]))  # energies 100, 9, 0.25, 0.01
    (row,) = adapter_facts(adapter, adapter.nbytes, {}).deltas
    assert (row.rank, row.rank_90, row.rank_99) == (4, 1, 2)


def test_ranks_above_those_of_the_matrix(build: Build, rand: Callable[..., Tensor]) -> None:
    module = LoraModule(name="a.proj", down=rand(9, 3), up=rand(5, 9), alpha=9.0)  # pyright: ignore[reportArgumentType]
    adapter = build(module)
    (row,) = adapter_facts(adapter, adapter.nbytes, {}).deltas
    assert row.norm == pytest.approx(float(module.delta().norm()), rel=1e-5)
    assert row.rank_99 is not None
    assert row.rank_99 <= 3


def test_a_file_truncated_to_an_error_has_the_size_that_is_said(
    build: Build, spectrum: Spectrum, tmp_path: Path
) -> None:
    whole = build(spectrum("a.proj", [10.0, 3.0, 0.2, 0.1]), spectrum("b.proj", [1.0, 0.8]))
    save_adapter(whole, tmp_path / "whole.safetensors")
    nbytes = (tmp_path / "whole.safetensors").stat().st_size
    five = {one.relative_error: one for one in adapter_facts(whole, nbytes, {}).truncations}[0.05]
    assert five.ranks == 4
    kept = build(spectrum("a.proj", [10.0, 3.0]), spectrum("b.proj", [1.0, 0.8]))
    save_adapter(kept, tmp_path / "kept.safetensors")
    assert abs(five.nbytes - (tmp_path / "kept.safetensors").stat().st_size) < 64  # digits of offsets


def test_values_that_are_not_finite_are_named(build: Build, spectrum: Spectrum) -> None:
    good = spectrum("a.proj", [1.0, 0.5])
    adapter = build(replace(good, down=good.down * math.nan), dense={"a.bias": torch.tensor([1.0, math.inf])})
    found = adapter_facts(adapter, adapter.nbytes, {})
    assert found.broken == ("a.proj.weight", "a.bias")
    assert math.isnan(found.norm)
    assert found.truncations == ()


def test_products_beyond_fp32_are_named_too(build: Build, spectrum: Spectrum) -> None:
    good = spectrum("a.proj", [1.0, 0.5])
    adapter = build(replace(good, up=good.up * 1e30, down=good.down * 1e30))
    assert adapter_facts(adapter, adapter.nbytes, {}).broken == ("a.proj.weight",)


def test_eight_bits_are_a_byte_for_each_value(build: Build, spectrum: Spectrum, tmp_path: Path) -> None:
    adapter = build(spectrum("a.proj", [1.0, 0.5]), dense={"a.bias": torch.ones(6)}).cast(torch.int8)
    save_adapter(adapter, tmp_path / "lora.safetensors")
    found = adapter_facts(load_adapter(tmp_path / "lora.safetensors"), 1000, {})
    assert (found.dtype, found.factor_nbytes, found.dense_nbytes) == ("int8", 2 * (6 + 5) + 2 * 4, 12)


def test_a_lora_of_dense_deltas_alone(build: Build) -> None:
    found = adapter_facts(build(dense={"a.bias": torch.ones(4)}), 100, {})
    assert (found.modules, found.dense, found.rank_span, found.truncations) == (0, 1, "", ())
