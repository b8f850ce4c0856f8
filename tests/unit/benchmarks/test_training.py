"""The step time's bookkeeping, and the measured part of the training page."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import write_result
from benchmarks.training import BY_HAND, OURS, WARM, Moment, differences, summed_up
from benchmarks.training_page import BEGIN, END, write_page

SETTINGS = {"scratch": {"lora_rank": 8, "max_steps": 120, "batch_size": 16}, "continued": {}}
SUMMARY = {
    name: {"whole": whole, "inside": 10.0, "better_than_source": 0.5}
    for name, whole in {"source": 15, "base": 18, "tuned": 23.5, "LoRA": 23.25}.items()
}
NUMBERS: dict[str, dict[str, Any]] = {
    "scratch": {"summary": SUMMARY, "lora_bytes": 5e6, "train_pairs": 3000, "step_s": 1.5, "pairs": 480}
    | {"gap": {where: {"mean": mean, "standard_error": 0.03} for where, mean in (("whole", -0.25), ("inside", 0))}},
    "continued": {
        "validation": {
            name: {"loss": loss, "losses": {1000.0: loss}, "pairs": 480}
            for name, loss in {"base": 0.4, "extracted": 0.35, "continued": 0.31, "tuned": 0.3}.items()
        },
        "changes": {
            "selected": 5, "selected_changed": 5, "others": 7, "others_changed": 0, "dense": 9, "dense_changed": 0,
        },
        "rank": 4, "steps": 150, "modules": ["attn1"],
    },
}  # fmt: skip


def _write(folder: Path, theme: str) -> None:
    write_result(
        folder,
        theme,
        {"machine": {"cpu": "A CPU", "cores": 4, "cores used": 2}, **NUMBERS[theme]},
        command="python -m benchmarks.relight",
        settings=SETTINGS[theme],
        pair={},
        slug="a-cpu-2",
    )


def test_the_first_steps_do_not_count() -> None:
    moments = [Moment(wall=k * k, cpu=k) for k in range(WARM + 3)]
    assert [step.cpu for step in differences(moments)] == [1, 1]
    assert differences(moments)[0].wall == (WARM + 1) ** 2 - WARM**2


def test_ratios_are_of_medians_over_all_rounds_and_of_each_round() -> None:
    def rounds(*values: float) -> list[list[Moment]]:
        return [[Moment(wall=2 * value, cpu=value)] * 3 for value in values]

    found = summed_up({BY_HAND: rounds(1, 2, 4), OURS: rounds(1, 3, 4)})
    assert found[BY_HAND]["cpu_ratio"] == 1
    assert found[OURS]["cpu_s"] == 3
    assert found[OURS]["wall_s"] == 6
    assert found[OURS]["cpu_ratio"] == 1.5
    assert found[OURS]["wall_ratios"] == [1, 1.5, 1]
    assert found[OURS]["steps"] == 9


def test_the_page_keeps_what_is_around_its_markers(tmp_path: Path) -> None:
    page, results = tmp_path / "training.md", tmp_path / "results"
    results.mkdir()
    page.write_text(f"before\n{BEGIN}old\n{END}\nafter\n")
    for theme in NUMBERS:
        _write(results, theme)
    write_page(results, page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| LoRA | 23.25 | 10.00 | 50 % |" in text
    assert "in 3 minutes (1.50 s a step)" in text
    assert "-0.25 dB (0.03) whole, +0.00 dB (0.03) inside." in text
    assert "| the same after 150 steps | 0.31000 | 0.31000 |" in text
    assert "| model | loss | at 1000 |" in text


def test_only_what_was_measured_is_on_the_page(tmp_path: Path) -> None:
    page = tmp_path / "training.md"
    page.write_text(BEGIN + END)
    _write(tmp_path, "scratch")
    write_page(tmp_path, page)
    assert "Validation loss" not in page.read_text()


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "training.md"
    page.write_text("text")
    _write(tmp_path, "scratch")
    with pytest.raises(SystemExit, match=r"training\.md has not both markers"):
        write_page(tmp_path, page)
    assert page.read_text() == "text"


def test_without_results_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"python -m benchmarks\.training"):
        write_page(tmp_path, tmp_path / "training.md")
