"""Values by block and layer, their shades, and the limit of a table's size."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.report.inspection.adapters import adapter_facts
from lbm_lora.report.inspection.differences import adapter_difference
from lbm_lora.report.inspection.heat import HeatMap, difference_map, norm_map, spectrum_map

Build = Callable[..., Adapter]
Spectrum = Callable[..., LoraModule]


def cells_of(heat: HeatMap) -> dict[tuple[str, str], tuple[str, float]]:
    return {
        (block, layer): (cell.text, cell.shade)
        for block, cells in heat.rows
        for layer, cell in zip(heat.layers, cells, strict=True)
        if cell is not None
    }


def test_norms_by_block_and_layer(build: Build, spectrum: Spectrum) -> None:
    adapter = build(
        spectrum("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", [3.0]),
        spectrum("mid_block.attentions.0.transformer_blocks.1.attn1.to_q", [4.0]),
        spectrum("conv_in", [0.5]),
        dense={"conv_norm_out.weight": torch.tensor([0.05])},
    )
    found = norm_map(adapter_facts(adapter, 100, {}).deltas, "change")
    cells = cells_of(found)
    assert found.layers == ("conv", "attn1.to_q", "norm")
    assert cells["mid_block", "attn1.to_q"] == ("5", pytest.approx(1))
    assert cells["conv_in", "conv"] == ("0.5", pytest.approx(0.5))  # a tenth: half of two decades
    assert cells["conv_norm_out", "norm"] == ("0.05", pytest.approx(0, abs=1e-6))
    assert len(cells) == 3


def test_the_share_of_ranks_in_use(build: Build, spectrum: Spectrum) -> None:
    adapter = build(spectrum("a.conv1", [10.0, 1.0]), spectrum("b.conv1", [1.0, 1.0]), dense={"a.bias": torch.ones(2)})
    cells = cells_of(spectrum_map(adapter_facts(adapter, 100, {}).deltas))
    assert cells == {("a", "conv1"): ("50", 0.5), ("b", "conv1"): ("100", 1.0)}


def test_blocks_with_the_same_bits_are_left_out_of_a_difference(build: Build, spectrum: Spectrum) -> None:
    one, other = spectrum("a.conv1", [1.0]), spectrum("b.conv1", [1.0])
    found = difference_map(adapter_difference(build(one, other), build(one, replace(other, alpha=3.0))).rows)
    assert cells_of(found) == {("b", "conv1"): ("2", pytest.approx(1))}
    assert found.about.endswith("left out.")


def test_thousands_of_blocks_and_layers_are_gathered(build: Build) -> None:
    adapter = build(dense={f"b{i}.layer{i}.bias": torch.ones(1) for i in range(500)})
    found = norm_map(adapter_facts(adapter, 100, {}).deltas, "change")
    assert (len(found.rows), len(found.layers)) == (61, 41)
    assert found.layers[-1] == "others"
    assert max(float(text) for text, _ in cells_of(found).values()) ** 2 == pytest.approx(440, rel=0.01)
