"""Result files, targets and the page made of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.report import render, table, write_report
from benchmarks.results import newest, write_result
from benchmarks.targets import TARGETS, Target, Verdict, slower_by, verdicts

MACHINE = {"cpu": "A CPU", "cores": 4, "cores used": 2, "memory_gb": 16.0, "system": "Linux"}
VERSIONS = {"commit": "1234abcd", "torch": "2.9", "python": "3.11"}


def _process(seconds: float, anon_bytes: int = 2 * 10**8) -> dict[str, Any]:
    times = {"work_s": seconds, "wall_s": seconds + 2, "cpu_s": seconds, "work_cpu_s": seconds}
    return {**times, "anon_bytes": anon_bytes, "input_bytes": 10**10, "output_bytes": 10**8, "io": {}}


def _write(folder: Path, theme: str, **numbers: Any) -> Path:
    return write_result(
        folder,
        theme,
        {"machine": MACHINE, "versions": VERSIONS, **numbers},
        command="python -m benchmarks",
        settings={"scale": 1.0, "device": "cpu"},
        pair={"seed": 0},
        slug="a-cpu-2",
    )


def _extract(folder: Path, seconds: float) -> Path:
    runs = {"bare pass": _process(8), "bare pass by tensor": _process(10), "extract": _process(seconds)}
    ratio = {"work_s": seconds / 8, "wall_s": (seconds + 2) / 10}
    ratios = {"bare pass": ratio, "bare pass by tensor": ratio}
    work = {"rounds_flop": 10**12, "rounds_dtype": "bf16", "fp32_flop": 3 * 10**11}
    return _write(folder, "extract", runs=runs, ratios=ratios, work=work)


def test_a_result_is_named_by_theme_machine_and_date(tmp_path: Path) -> None:
    path = _write(tmp_path, "extract")
    content = json.loads(path.read_text())
    assert path.name == f"extract_a-cpu-2_{content['date'][:10]}.json"
    assert content["machine"] == MACHINE


def test_the_newest_result_of_a_theme_counts(tmp_path: Path) -> None:
    # 08:00 in Tokyo is 23:00 of the day before in Greenwich
    for date, number in (("2026-01-03T01:00:00+00:00", 1), ("2026-01-03T08:00:00+09:00", 2)):
        content = {"schema": 1, "theme": "extract", "date": date, "number": number}
        (tmp_path / f"extract_m_{number}.json").write_text(json.dumps(content))
    assert newest(tmp_path)["extract"]["number"] == 1


def test_a_result_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "extract_m_1.json").write_text(json.dumps({"schema": 7}))
    with pytest.raises(ValueError, match="schema 7"):
        newest(tmp_path)


@pytest.mark.parametrize(
    ("value", "at_least", "words"),
    [(1.4, False, "met"), (3.0, False, "missed by 50 %"), (3.0, True, "met"), (1.0, True, "missed by 100 %")],
)
def test_a_verdict_says_by_how_much(value: float, at_least: bool, words: str) -> None:
    target = Target(what="w", limit=2, unit="x", theme="t", value=lambda _: value, at_least=at_least)
    assert Verdict(target=target, value=value).words == words


def test_the_stretch_is_named_where_it_is_met() -> None:
    target = Target(what="w", limit=2, stretch=1.5, unit="x", theme="t", value=lambda _: 1.4)
    assert Verdict(target=target, value=1.4).words == "met, and the stretch of 1.5 x too"
    assert Verdict(target=target, value=1.6).words == "met"


def test_the_larger_ratio_counts() -> None:
    value = slower_by("validate")
    assert value({"validate": {"ratios": {"work_s": 1.2, "wall_s": 1.6}}}) == 1.6


def test_what_was_not_measured_is_said_to_be_so(tmp_path: Path) -> None:
    _extract(tmp_path, 12)
    _write(tmp_path, "several", missing="extract takes one rank at a time")
    found = {verdict.target.what: verdict for verdict in verdicts(newest(tmp_path))}
    assert len(found) == len(TARGETS)
    assert found["extract 32/16: time over the bare pass, tensor by tensor"].value == 1.5
    assert found["infer, fused: whole forward over the raw call"].words == "not measured: no result of infer"
    assert found["several ranks at once: time over the largest alone"].words.endswith("one rank at a time")


def test_the_page_has_every_target_and_the_processes(tmp_path: Path) -> None:
    _extract(tmp_path, 20)
    limits = {
        "bf16 product with 40 columns, GFLOP/s": 200.0,
        "fp32 product with 40 columns, GFLOP/s": 100.0,
    }
    _write(tmp_path, "machine", limits=limits)
    page = render(newest(tmp_path))
    assert all(target.what in page for target in TARGETS)
    assert "| extract 32/16: time over the bare pass, tensor by tensor | <= 2 x | 2.50 x | missed by 25 % |" in page
    assert "20.00 s | 22.00 s" in page
    assert "8.0 s to read the files and subtract; 5.0 s for the products" in page
    assert "1.00 TFLOP in bf16; 3.0 s for the last product" in page
    assert "Together 16.0 s, 1.60 x the bare pass" in page
    assert "| extract, machine |" in page


def test_report_writes_the_page_or_says_that_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no result files"):
        write_report(tmp_path, tmp_path / "page.md")
    _extract(tmp_path, 12)
    assert main(["report", "--results", str(tmp_path), "--to", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text().startswith("# Performance")


def test_a_table_has_a_row_for_each_entry() -> None:
    assert table(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_an_unknown_theme_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--only nothing: the themes are machine, extract"):
        main(["--only", "nothing", "--work", str(tmp_path)])


def test_a_scale_above_the_real_lbm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--scale 2: it lies above 0"):
        main(["--scale", "2", "--work", str(tmp_path)])
    assert not list(tmp_path.iterdir())
