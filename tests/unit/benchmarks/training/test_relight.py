"""What the proof of training measures."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.training.relight import gap, scores, step_seconds, summed_up


def test_without_a_model_the_sources_are_measured(tmp_path: Path) -> None:
    target = np.zeros((2, 2, 3), np.uint8)
    target[0] = 51
    images = {
        "source": np.zeros((2, 2, 3), np.uint8),
        "target": target,
        "mask": np.array([[255, 255], [0, 0]], np.uint8),
    }
    for role, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / f"0000-0-to-1.{role}.png")
    found = scores(None, tmp_path)
    assert found["whole"].tolist() == [pytest.approx(10 * np.log10(2 * 25), abs=1e-4)]
    assert found["inside"].tolist() == [pytest.approx(10 * np.log10(25), abs=1e-4)]


def test_the_summary_has_means_and_the_share_that_is_better() -> None:
    source = {"whole": np.array([10, 20]), "inside": np.array([1, 5])}
    found = summed_up({"source": source, "LoRA": {"whole": np.array([20, 30]), "inside": np.array([4, 4])}})
    assert found["LoRA"] == {"whole": 25, "inside": 4, "better_than_source": 0.5}
    assert found["source"]["better_than_source"] == 0


def test_the_gap_is_of_pairs() -> None:
    one = {"whole": np.array([3.0, 5.0]), "inside": np.array([1.0, 1.0])}
    found = gap(one, {"whole": np.array([2.0, 2.0]), "inside": np.array([2.0, 2.0])})
    assert found["whole"] == {"mean": 2, "standard_error": 1}
    assert found["inside"] == {"mean": -1, "standard_error": 0}


def test_a_step_that_was_done_again_after_a_stop_counts_once(tmp_path: Path) -> None:
    for age, (version, rows) in enumerate({"version_0": {10: 1.0, 20: 9.0}, "version_1": {20: 2.0, 30: 3.0}}.items()):
        path = tmp_path / version / "metrics.csv"
        path.parent.mkdir()
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("step", "train/seconds_per_step"), *rows.items()])
        os.utime(path, (age, age))
    assert step_seconds(tmp_path) == 2
