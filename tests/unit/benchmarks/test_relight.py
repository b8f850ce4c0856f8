"""The proofs of training: pairs out of scenes, pictures against targets, and what a continued LoRA may change."""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.relight import step_seconds
from benchmarks.relight_measure import Quality, changes, gap, psnr, quality, summed_up
from benchmarks.relight_pairs import load_scenes, made_once, read_pairs, write_pairs
from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule
from lbm_lora.naming import ModuleName, ParamName


@dataclass
class Scenes:
    """Two scenes of three lights; a picture shows the lights it is made of."""

    alpha = np.array([np.ones((4, 4)), np.eye(4)], dtype=np.float32)
    objects = np.zeros((2, 3, 4, 4, 3), dtype=np.uint8)

    def composite(self, scene: int, i: int, j: int) -> np.ndarray:
        return np.full((4, 4, 3), 100 * scene + 10 * i + j, dtype=np.uint8)


def test_every_ordered_pair_of_lights_is_a_pair(tmp_path: Path) -> None:
    write_pairs(Scenes(), tmp_path / "pairs")
    pairs = {pair.name: pair for pair in read_pairs(tmp_path / "pairs")}
    assert len(pairs) == 2 * 3 * 2
    one = pairs["0001-0-to-2"]
    assert (one.source == 102).all()
    assert (one.target == 122).all()
    assert np.array_equal(one.mask, np.eye(4))


def test_scenes_that_are_not_rendered_are_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no scenes/train\. Render them: python tools/render_pairs\.py"):
        load_scenes(tmp_path, "train")


def test_a_folder_is_made_once_and_never_in_part(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise RuntimeError

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "whole").touch()

    with pytest.raises(RuntimeError):
        made_once(tmp_path / "made", fail)
    assert not (tmp_path / "made").exists()
    assert [path.name for path in made_once(tmp_path / "made", make).iterdir()] == ["whole"]
    made_once(tmp_path / "made", fail)  # is there already


def test_psnr_counts_the_pixels_of_the_mask() -> None:
    one, other = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    other[0] = 51
    assert psnr(one, other) == pytest.approx(10 * np.log10(2 * 25))
    assert psnr(one, other, np.array([[1.0, 1.0], [0.0, 0.0]])) == pytest.approx(10 * np.log10(25))
    assert psnr(one, other, np.array([[0.0, 0.0], [1.0, 1.0]])) > 100


def test_without_a_model_the_sources_are_measured(tmp_path: Path) -> None:
    write_pairs(Scenes(), tmp_path / "pairs")
    found = quality(None, read_pairs(tmp_path / "pairs")[:1])  # 0 over 1, whose target is 11
    assert found.whole == found.inside == [pytest.approx(20 * np.log10(255 / 10))]


def test_the_summary_has_means_and_the_share_that_is_better() -> None:
    source = Quality(whole=[10, 20], inside=[1, 5])
    found = summed_up({"source": source, "LoRA": Quality(whole=[20, 30], inside=[4, 4])})
    assert found["LoRA"] == {"whole": 25, "inside": 4, "better_than_source": 0.5}
    assert found["source"]["better_than_source"] == 0


def test_the_gap_is_of_pairs() -> None:
    found = gap(Quality(whole=[3, 5], inside=[1, 1]), Quality(whole=[2, 2], inside=[2, 2]))
    assert found["whole"] == {"mean": 2, "standard_error": 1}
    assert found["inside"] == {"mean": -1, "standard_error": 0}


def _adapter(values: Mapping[str, float], norm: float = 0.0) -> Adapter:
    """One module of each name whose up factor has that value."""
    modules = {
        ModuleName(name): LoraModule(ModuleName(name), torch.ones(1, 3), torch.full((2, 1), value), 1.0)
        for name, value in values.items()
    }
    return Adapter(modules, {ParamName("norm.bias"): torch.full((2,), norm)}, AdapterMetadata(FORMAT, "", ""), "")


def test_a_selected_module_must_change_in_both_factors_and_no_other() -> None:
    before = _adapter({"a.attn1.q": 1, "b.attn2.q": 1})
    only_up = changes(before, _adapter({"a.attn1.q": 2, "b.attn2.q": 1}), ["attn1"])
    assert (only_up.selected, only_up.selected_changed, only_up.others_changed) == (1, 0, 0)
    assert not only_up.as_told
    moved = _adapter({"a.attn1.q": 2, "b.attn2.q": 1})
    module = moved.modules[ModuleName("a.attn1.q")]
    other = LoraModule(module.name, module.down + 1, module.up, module.alpha)
    both = Adapter({**moved.modules, module.name: other}, moved.dense, moved.metadata, "")
    assert changes(before, both, ["attn1"]).as_told


@pytest.mark.parametrize(("values", "norm"), [({"a.attn1.q": 1, "b.attn2.q": 2}, 0.0), ({}, 1.0)])
def test_a_change_outside_the_selection_is_found(values: dict[str, float], norm: float) -> None:
    names = {"a.attn1.q": 1.0, "b.attn2.q": 1.0}
    found = changes(_adapter(names), _adapter(names | values, norm), ["attn1"])
    assert (found.others_changed, found.dense_changed) == (len(values) // 2, int(norm))
    assert not found.as_told


def test_files_of_other_modules_are_not_compared() -> None:
    with pytest.raises(ValueError, match="do not have the same modules"):
        changes(_adapter({"a": 1}), _adapter({"b": 1}), ["a"])


def test_a_step_that_was_done_again_after_a_stop_counts_once(tmp_path: Path) -> None:
    for age, (version, rows) in enumerate({"version_0": {10: 1.0, 20: 9.0}, "version_1": {20: 2.0, 30: 3.0}}.items()):
        path = tmp_path / version / "metrics.csv"
        path.parent.mkdir()
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("step", "train/seconds_per_step"), *rows.items()])
        os.utime(path, (age, age))
    assert step_seconds(tmp_path) == 2
