"""The performance page out of made-up results."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.perf.__main__ import main
from benchmarks.perf.page import TARGETS, rate_name, report, slower_by, write_report

COMMON = {
    "schema": 1,
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m benchmarks",
    "settings": {"scale": 1.0, "device": "cpu"},
    "pair": {"seed": 0, "dtype": "bf16"},
    "machine": {"cpu": "A CPU", "cores": 4, "cores used": 2, "memory_gb": 16.0, "system": "Linux"},
    "versions": {"commit": "1234abcd", "torch": "2.9", "python": "3.11"},
}


def process(seconds: float, /, **result: Any) -> dict[str, Any]:
    times = {"work_s": seconds, "wall_s": seconds + 2, "cpu_s": seconds, "work_cpu_s": seconds}
    files = {"anon_bytes": 2 * 10**8, "input_bytes": 10**10, "output_bytes": 10**8, "io": {"wchar": 3 * 10**8}}
    return {**times, **files, "runs": [{"work_s": seconds, "result": result}, {"work_s": seconds + 1, "result": {}}]}


def extract(seconds: float) -> dict[str, Any]:
    runs = {"bare pass": process(8), "bare pass by tensor": process(10), "extract": process(seconds)}
    return {"runs": runs, "work": {"rounds_flop": 10**12, "rounds_dtype": "bf16", "fp32_flop": 3 * 10**11}}


EVERYTHING = {
    "machine": {"limits": {rate_name("bf16"): 200.0, rate_name("fp32"): 100.0}},
    "extract": extract(20),
    "svd": {"full_matrices_s": 900.0, "thin_s": 500.0},
    "error": {
        dtype: {"largest_ratio": 1.0005, "mean_ratio": 1.0001, "relative_error": 0.5, "measured": 3, "of": 9}
        for dtype in ("fp32", "bf16")
    },
    "full_rank": {
        "runs": {"bare pass": process(1), "full rank": process(98)},
        "bytes": 101,
        "bytes_of_factors": 100,
        "error": {"relative_error": 0.0018},
    },
    "several": {"runs": {"one": process(10), "several": process(11)}},
    "base": {"runs": {"copy": process(10), "base": process(15)}},
    "fuse": {"runs": {"copy": process(10), "fuse": process(25)}},
    "resize": {"runs": {"copy": process(1), "resize": process(20)}},
    "validate": {"runs": {"bare pass": process(8), "bare pass by tensor": process(10), "validate": process(9)}},
    "merge": {"runs": {"merge": process(3)}},
    "load": {"runs": {"load": process(3)}, "load_s": 0.5, "resident_growth": 51, "file_bytes": 50},
    "calibrated": {
        "runs": {
            "calibrate": process(60),
            "extract --calibration --no_check": process(100),
            "extract --calibration": process(300),
        },
        "size": 256,
        "points": "four images of 256 x 256 at every trained timestep",
        "max_size": "180MB",
    },
    "train": {"runs": {"train": process(40, learning=1234567, step=3, seconds=36.0)}, "size": 256},
    "refine": {"runs": {"refine": process(50)}, "size": 256, "steps": 2},
    "infer": {"raw_s": [1.0, 3.0], "fused_s": 2.1, "live_s": 2.5, "fuse_s": 9.0, "inject_s": 0.2, "size": 512},
}


def results(**themes: Any) -> dict[str, Any]:
    return {theme: {**COMMON, "theme": theme, **numbers} for theme, numbers in themes.items()}


def test_the_page_has_every_target_and_what_it_comes_to() -> None:
    page = report(results(**EVERYTHING))
    assert "not measured" not in page
    assert "| extract 32/16: time over the bare pass, tensor by tensor | <= 2 x | 2.00 x | met |" in page
    assert "| extract 32/16: time over the bare pass, in blocks that fit the cache | <= 2 x | 2.50 x | missed" in page
    assert "| extract 32/16: times faster than SVD with full matrices | >= 40 x | 45.0 x | met |" in page
    assert "| extract 32/16: peak anonymous memory | <= 1 GB | 0.20 GB | met |" in page
    assert "| error before rounding: worst module over the optimum | <= 1.001 x | 1.000500 x | met |" in page
    assert "| calibrated extraction, no LoRA run: CPU time over the cores | <= 120 s | 50 s | met |" in page
    assert "| its check: CPU time over the cores | <= 60 s | 100 s | missed by 66.7 % |" in page
    assert "| full rank: time | <= 120 s | 100.0 s | met |" in page
    assert "| full rank: relative error of the bf16 file | <= 0.17 % | 0.1800 % | missed by 5.88 % |" in page
    assert "| full rank: bytes over those of two bf16 factors | <= 1.01 x | 1.010 x | met |" in page
    assert "| file to ready model: memory over the file's size, all of it read | <= 1.05 x | 1.02 x | met |" in page
    assert "| infer, fused: whole forward over the raw call | <= 1.03 x | 1.050 x | missed by 1.94 % |" in page


def test_processes_stand_beside_the_first_of_their_theme() -> None:
    page = report(results(**EVERYTHING))
    assert "| base | copy | 10.00 s | 12.00 s | 10.00 s | 0.20 GB | 10.00 GB | 0.30 GB | 1 |" in page
    assert "| 10.00 GB | 0.30 GB | 1.50 / 1.42 / 1.50 |" in page
    assert page.index("| extract | extract |") < page.index("| several | several |") < page.index("| base | base |")


def test_the_sections_say_what_was_measured() -> None:
    page = report(results(**EVERYTHING))
    assert "8.0 s to read the files and subtract; 5.0 s for the products" in page
    assert "1.00 TFLOP in bf16; 3.0 s for the last product" in page
    assert "In total 16.0 s, 1.60 x the bare pass" in page
    assert "In 2 alternating runs the copy took 10.0 to 11.0 s after imports, fuse 25.0 to 26.0 s." in page
    assert "| LoRA live (rank 32/16) | 2.50 s | 1.250 | 0.20 s |" in page
    assert "(1,234,567 parameters)" in page
    assert "12.0 s per optimizer step over 3 steps" in page
    assert "| machine, extract, svd," in page
    assert "The pair: seed 0; dtype bf16.\n" in page
    assert "\n\n\n" not in page


def test_what_was_not_measured_is_said_to_be_so() -> None:
    page = report(results(extract=extract(12)))
    assert page.count("| - | not measured |") == len(TARGETS) - 3
    assert "What limits" not in page
    assert "other processes" not in page


def test_the_larger_ratio_counts() -> None:
    runs = {"validate": {"work_s": 12, "wall_s": 16}, "copy": {"work_s": 10, "wall_s": 10}}
    assert slower_by("validate", "copy")({"validate": {"runs": runs}}) == 1.6


def test_report_writes_the_page_or_says_that_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no result files"):
        write_report(tmp_path, tmp_path / "page.md")
    (tmp_path / "extract_m_1.json").write_text(json.dumps(results(extract=extract(12))["extract"]))
    assert main(["report", "--results", str(tmp_path), "--to", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text().startswith("# Performance")


def test_an_unknown_theme_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--only nothing: the themes are machine, extract"):
        main(["--only", "nothing", "--work", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()


def test_a_scale_above_the_real_lbm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--scale must be above 0 and at most 1, the real LBM; got 2\."):
        main(["--scale", "2", "--work", str(tmp_path / "work")])


def test_the_page_says_what_was_calibrated_on() -> None:
    runs = {name: process(60) for name in ("calibrate", "extract --calibration --no_check", "extract --calibration")}
    points = "four images of 256 x 256 at every trained timestep"
    page = report(results(calibrated={"runs": runs, "size": 256, "points": points, "max_size": "100MB"}))
    assert f"`calibrate` with {points}, " in page
    assert "without running the LoRA (`--no_check`) and with its check: " in page
    old = report(results(calibrated={"runs": runs, "size": 256, "max_size": "180MB"}))
    assert "| statistics of four images at four timesteps | <= 1 GB | - | not measured |" in old
    assert "`calibrate` with one image of 256 x 256 at timestep 1000, " in old
