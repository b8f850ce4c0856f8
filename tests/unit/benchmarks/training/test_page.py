"""The measured part of the training page, on made-up results."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training.page import BEGIN, END, report, write_page

COMMON: dict[str, Any] = {
    "schema": 1,
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m benchmarks.training",
    "machine": {"cpu": "A CPU", "cores": 4, "cores used": 2},
}
SCRATCH: dict[str, Any] = {
    **COMMON,
    "theme": "scratch",
    "settings": {"lora_rank": 8, "max_steps": 1200, "batch_size": 16},
    "summary": {
        name: {"whole": whole, "inside": 10.0, "better_than_source": 0.5}
        for name, whole in {"source": 15, "base": 18, "tuned": 23.5, "LoRA": 23.25}.items()
    },
    "gap": {"whole": {"mean": -0.25, "standard_error": 0.03}, "inside": {"mean": 0.0, "standard_error": 0.03}},
    "lora_bytes": 5e6,
    "train_pairs": 3000,
    "step_s": 1.5,
    "pairs": 480,
}
WAY = {"cpu_s": 0.5, "cpu_ratio": 0.9, "cpu_ratios": [0.8, 1.1], "wall_s": 0.6, "wall_ratio": 1, "wall_ratios": [1, 1]}
STEP_TIME: dict[str, Any] = {
    **COMMON,
    "theme": "step_time",
    "settings": {"rank": 4, "batch_size": 2, "size": 128, "precision": "32", "threads": 1, "rounds": 5, "steps": 20},
    "ways": {"lbm-lora train": WAY},
}


def test_what_was_measured_is_on_the_page() -> None:
    text = report({"scratch": SCRATCH, "step_time": STEP_TIME})
    assert "| LoRA | 23.25 | 10.00 | 50 % |" in text
    assert "1,200 steps of 16 pairs out of 3,000 renders, in 30 minutes (1.50 s per step)" in text
    assert "-0.25 dB (0.03) whole, +0.00 dB (0.03) inside." in text
    assert "`python -m benchmarks.training`, 2026-01-02, A CPU, 2 of 4 cores." in text
    assert "| lbm-lora train | 0.500 s | 0.900 (0.800 to 1.100) | 0.600 s | 1.000 (1.000 to 1.000) |" in text


def test_only_what_was_measured_is_on_the_page() -> None:
    assert "hand-written loop" not in report({"scratch": SCRATCH})
    assert "from scratch" not in report({"step_time": STEP_TIME})


def test_the_page_keeps_what_is_around_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "training.md"
    page.write_text(f"before\n{BEGIN}old\n{END}\nafter\n")
    (tmp_path / "scratch.json").write_text(json.dumps(SCRATCH))
    write_page(tmp_path, page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}A LoRA trained from scratch")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "training.md"
    page.write_text("text")
    (tmp_path / "scratch.json").write_text(json.dumps(SCRATCH))
    with pytest.raises(SystemExit, match=r"training\.md lacks a marker"):
        write_page(tmp_path, page)
    assert page.read_text() == "text"


def test_without_results_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"python -m benchmarks\.training"):
        write_page(tmp_path, tmp_path / "training.md")
