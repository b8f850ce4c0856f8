"""How two files differ: from factors as from dense matrices; what is the same bits; whether a LoRA fits."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.checkpoint import Checkpoint, fingerprint, open_checkpoint
from lbm_lora.report.inspection.differences import adapter_difference, checkpoint_difference, fit_of

Build = Callable[..., Adapter]
Spectrum = Callable[..., LoraModule]
Rand = Callable[..., Tensor]


def opened(tensors: Mapping[str, Tensor]) -> Checkpoint:
    return open_checkpoint(tensors)


def test_deltas_of_factors_differ_as_the_matrices_do(build: Build, rand: Rand) -> None:
    one = LoraModule(name="a.proj", down=rand(2, 30), up=rand(20, 2), alpha=1.0)  # pyright: ignore[reportArgumentType]
    other = LoraModule(name="a.proj", down=rand(3, 30), up=rand(20, 3), alpha=6.0)  # pyright: ignore[reportArgumentType]
    found = adapter_difference(build(one), build(other))
    gap = one.delta() - other.delta()
    (row,) = found.rows
    assert row.match == "different"
    assert row.norm == pytest.approx(float(gap.norm()), rel=1e-5)
    assert row.relative == pytest.approx(float(gap.norm() / one.delta().norm()), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(one.delta().flatten(), other.delta().flatten(), dim=0)
    assert row.cosine == pytest.approx(float(cosine), abs=1e-5)
    assert (found.relative, found.cosine) == (row.relative, row.cosine)


def test_other_factors_of_the_same_delta_hardly_differ(build: Build, spectrum: Spectrum) -> None:
    module = spectrum("a.proj", [3.0, 2.0, 1.0])
    turned = replace(module, up=module.up.flip(1) * 2, down=module.down.flip(0) / 2)
    found = adapter_difference(build(module), build(turned))
    assert found.counts == {"different": 1}
    assert found.relative < 1e-6
    assert found.cosine == pytest.approx(1, abs=1e-6)


def test_the_same_file_has_the_same_bits(build: Build, spectrum: Spectrum) -> None:
    adapter = build(spectrum("a.proj", [3.0, 1.0]), dense={"a.bias": torch.ones(2)})
    found = adapter_difference(adapter, build(spectrum("a.proj", [3.0, 1.0]), dense={"a.bias": torch.ones(2)}))
    assert found.is_same
    assert (found.relative, found.cosine) == (0, 1)


def test_another_alpha_is_another_delta(build: Build, spectrum: Spectrum) -> None:
    found = adapter_difference(build(spectrum("a", [1.0])), build(spectrum("a", [1.0], alpha=2.0)))
    assert found.relative == pytest.approx(1)


def test_what_only_one_has_counts_as_zero_in_the_other(build: Build, spectrum: Spectrum) -> None:
    first = build(spectrum("a.proj", [3.0]), spectrum("b.proj", [4.0]))
    second = build(spectrum("b.proj", [4.0]), dense={"c.bias": torch.tensor([5.0])})
    found = adapter_difference(first, second)
    assert {row.name: row.match for row in found.rows} == {
        "a.proj.weight": "only first",
        "b.proj.weight": "same",
        "c.bias": "only second",
    }
    assert found.relative == pytest.approx(math.sqrt((9 + 25) / (9 + 16)))


def test_factors_and_a_dense_delta_of_one_weight_are_compared(build: Build, spectrum: Spectrum) -> None:
    module = spectrum("a.proj", [3.0, 1.0])
    found = adapter_difference(build(module), build(dense={"a.proj.weight": module.delta()}))
    assert found.rows[0].match == "different"
    assert found.relative < 1e-6


def test_another_shape_is_not_compared(build: Build, spectrum: Spectrum) -> None:
    found = adapter_difference(build(spectrum("a", [1.0])), build(spectrum("a", [1.0], shape=(7, 5))))
    assert found.counts == {"other shape": 1}


def test_values_that_are_not_finite_give_no_number(build: Build, spectrum: Spectrum) -> None:
    module = spectrum("a", [1.0])
    found = adapter_difference(build(module), build(replace(module, up=module.up * math.nan)))
    assert math.isnan(found.rows[0].norm)
    assert math.isnan(found.relative)


def test_tensors_of_checkpoints(rand: Rand) -> None:
    weight = rand(4, 4)
    first = {"denoiser.conv_in.weight": weight, "denoiser.conv_in.bias": torch.zeros(4), "vae.x": torch.ones(2)}
    second = {"denoiser.conv_in.weight": weight + 0.5, "vae.x": torch.ones(2), "denoiser.new": torch.ones(3)}
    found = checkpoint_difference(opened(first), opened(second))
    rows = {row.name: row for row in found.rows}
    assert {name: row.match for name, row in rows.items()} == {
        "conv_in.weight": "different",
        "conv_in.bias": "only first",
        "new": "only second",
        "vae.x": "same",
    }
    assert rows["conv_in.weight"].largest == pytest.approx(0.5)
    assert rows["conv_in.weight"].norm == pytest.approx(2.0)
    assert [row.name for row in found.rows][-1] == "vae.x"  # the denoiser's come first


def test_the_same_values_in_another_dtype_are_other_bits() -> None:
    found = checkpoint_difference(opened({"a": torch.ones(3)}), opened({"a": torch.ones(3).bfloat16()}))
    assert found.counts == {"different": 1}
    assert found.relative == 0


def test_a_lora_and_its_base_its_tuned_checkpoint_and_another(
    build: Build, spectrum: Spectrum, save: Callable[[str, Mapping[str, Tensor]], Path], rand: Rand
) -> None:
    states = {name: {"denoiser.a.weight": rand(6, 5), "denoiser.b.weight": rand(2)} for name in ("base", "tuned", "x")}
    parts = {name: opened(state).component() for name, state in states.items()}
    prints = {name: fingerprint(part) for name, part in parts.items()}
    metadata = AdapterMetadata("1", prints["base"].digest, prints["base"].packed(), prints["tuned"].digest)
    adapter = build(spectrum("a", [1.0]), metadata=metadata)
    found = {name: fit_of(adapter, parts[name], prints[name]) for name in states}
    assert {name: (fit.base, fit.fits) for name, fit in found.items()} == {
        "base": ("base", True),
        "tuned": ("tuned", False),
        "x": ("other", False),
    }
    assert set(found["x"].differing) == {"a.weight", "b.weight"}


def test_a_lora_for_another_network(build: Build, spectrum: Spectrum, rand: Rand) -> None:
    component = opened({"denoiser.a.weight": rand(7, 5), "denoiser.c.weight": rand(6, 5)}).component()
    adapter = build(spectrum("a", [1.0]), spectrum("b", [1.0]), spectrum("c", [1.0]))
    fit = fit_of(adapter, component, fingerprint(component))
    assert (fit.matched, fit.unmatched, fit.mismatched) == (1, ("b.weight",), ("a.weight",))
    assert fit.base == "unknown"
    assert not fit.fits
