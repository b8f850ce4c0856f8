"""The fidelity page and its chart, on made-up results."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.fidelity.__main__ import main
from benchmarks.fidelity.kinds import SHIFTED
from benchmarks.fidelity.numbers import RANKS, sets_of
from benchmarks.fidelity.page import chart, report, write_page

PREDICTION = {
    "error": 0.1,
    "foreseen": 0.01,
    "low": 0.05,
    "high": 0.2,
    "shifted": {"content": 0.2, "larger": 0.1, "smaller": 0.1, "timesteps": 0.1},
    "shifted_within": {"content": (0.1, 0.4)},
}


def made(first: float, *, smaller: int = 1, predicted: bool = False, ranks: tuple[int, ...] = RANKS) -> dict[str, Any]:
    """A set of two images 4 dB apart: `first` dB at rank 1 and 10 dB for each doubling of the matrices."""
    files = {
        f"r{rank}": {
            "nbytes": 10**6 + 800_000 * rank // smaller,
            "matrix_bytes": 800_000 * rank // smaller,
            "held_out": scores(first + 10 * index),
            **{kind: scores(first + 10 * index - 5) for kind in SHIFTED},
            "alike": scores(first + 10 * index),
            "predicted": PREDICTION if predicted else None,
        }
        for index, rank in enumerate(ranks)
    }
    return {"seconds": 7.0, "files": files}


def scores(psnr: float) -> dict[str, Any]:
    return {
        "denoiser_psnr": [psnr - 2, psnr + 2],
        "image_psnr": [psnr - 3, psnr + 1],
        "error_db": [-psnr - 1, -psnr + 1],
        "timesteps": {"1000": [-psnr, -psnr], "500": [-psnr - 4, -psnr]},
    }


def result(**sets: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "theme": "fidelity",
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python -m benchmarks.fidelity",
        "machine": {"cpu": "A CPU", "cores": 4, "cores used": 1},
        "versions": {"commit": "1234abcd", "torch": "2.9", "python": "3.11"},
        "calibration": {"source": "renders", "images": 64, "alike": 36},
        "calibration_seconds": {"full": 31.0, "photos": 2.0},
        "held": ["a.png", "b.png"],
        "base": {kind: scores(10.0) for kind in ("held_out", *SHIFTED)},
        "sets": {"plain": made(20), **sets},
    }


AUTO = {
    "int8": made(40, predicted=True),
    "auto_refit": made(50, predicted=True),
    "auto_small": made(20, smaller=40, predicted=True),
}


def test_methods_stand_next_to_plain_of_the_same_size() -> None:
    page = report(result(**AUTO))
    assert "2 held-out images" in page
    assert "measured on 64 images (renders)" in page
    assert "The base without a LoRA: denoiser 10.0 (8.0), decoded 9.0 (7.0)." in page
    assert "| size | plain | int8 | auto | auto over int8 | images below int8 / plain (either number) |" in page
    assert "| 4.20 MB (rank 4) | 40.0 (38.0) | 60.0 (58.0) | 70.0 (68.0) | +10.0 | 0 / 0 |" in page
    assert "| 4.20 MB (rank 4) | 39.0 (37.0) | 59.0 (57.0) | 69.0 (67.0) | +10.0 | 0 / 0 |" in page
    assert "| rank 4 | -40.0 | 3.20 / 4.20 | 4.0 / 2.3 | 40.0 / 3.9 |" in page
    assert "plain's file of the lowest rank contains 1.00 MB" in page
    predicted = "| 1.80 MB, auto | -40.0 | -20.0 (-26.0 to -14.0) |"
    differences = "-30.0 (0%) | -30.0 | - | - | -31.0 (0%) | -31.0 (0%) | -25.0 | -25.0 |"
    assert f"{predicted} {differences}" in page
    assert "| noise | -10.0 (-9.0) | rank 4 | -35.0 (-34.0) | -55.0 (-54.0) | -65.0 (-64.0) |" in page
    assert "| size of plain's | timestep 1000: plain / int8 / auto | timestep 500: plain / int8 / auto |" in page
    assert "| rank 1 | -20.0 / -40.0 / -50.0 | -22.0 / -42.0 / -52.0 |" in page
    assert "without statistics (full is the fp16 set, including a run of each file): plain 7 s, int8 7 s" in page
    assert "Measuring statistics: full 31 s, photos 2 s." in page
    assert "\n\n\n" not in page


def test_the_page_has_a_section_for_what_was_made() -> None:
    few = report(result())
    for title in ("Images to calibrate on", "Cheaper statistics", "twice the rank for convs", "## Other networks"):
        assert title not in few
    page = report(
        result(
            **AUTO,
            inputs=made(30),
            full=made(35),
            auto=made(46),
            auto_convs=made(48),
            images_16=made(49),
            images_4=made(48),
            photos=made(45),
            diagonal=made(40),
            plain_convs=made(25, ranks=RANKS[:-1]),
        )
    )
    assert "| size | 4 | 16 | 64 | 4 photos instead |" in page
    assert "+ 8 bits +5.0 dB, + bits for each rank +6.0 dB, + each place of a conv's kernel +2.0 dB" in page
    assert "| size | dense moments | both diagonals |" in page
    assert "| 4.20 MB (ranks 4 and 8) | 45.0 (43.0) | 44.0 (42.0) | -45.0 |" in page
    assert "| noise | -10.0 (-9.0) | rank 16 | -55.0 (-54.0) | - | -70.0 (-69.0) |" in page


def test_other_networks_have_a_table_each() -> None:
    def files(error: float) -> dict[str, Any]:
        return {
            str(rank): {"nbytes": 10**6 * rank, "errors": {"photos": [error - 1, error + 1], "noise": [error + 9]}}
            for rank in (1, 4)
        }

    network = {
        "title": "A net",
        "what": "Layers",
        "package": "a-net==1.0",
        "licence": "MIT",
        "parameters": 1000,
        "layers": 3,
        "calibration": "4 crops",
        "kinds": {"photos": "other photos", "noise": "noise"},
        "base": {"photos": [-8.0, -6.0], "noise": [-2.0]},
        "sets": {"plain": files(-10), "int8": files(-22)},
    }
    others = {**result(), "networks": {"a": network}}
    page = report(result(**AUTO), others)
    assert "in the package `a-net==1.0` (weights: MIT). Calibrated on 4 crops." in page
    assert "| inputs | base | size | plain | int8 |" in page
    assert "| other photos | -7.0 (-6.0) | 4.00 MB (rank 4) | -10.0 (-9.0) | -22.0 (-21.0) |" in page
    assert "the best files improve on plain by: the mini model 30.0 dB, A net 12.0 dB." in page


def test_the_page_and_its_chart_are_written(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps(result(**AUTO)))
    assert write_page(tmp_path, tmp_path / "page.md") == tmp_path / "page.md"
    assert (tmp_path / "page.md").read_text().startswith("# Fidelity")
    names = set(ElementTree.parse(tmp_path / "images" / "fidelity.svg").getroot().itertext())
    assert {"plain", "int8", "auto"} <= names
    assert "fp16" not in names


def test_lines_of_the_chart_rise_with_the_decibels() -> None:
    root = ElementTree.fromstring(chart(sets_of(result())))
    line = next(element for element in root if element.tag.endswith("polyline"))
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == len(RANKS)
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert points[0][1] > points[-1][1]
    assert all(62 < x < 704 and 34 <= y <= 372 for x, y in points)


def test_a_page_needs_a_result(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there are no result files yet"):
        main(["page", "--results", str(tmp_path), "--to", str(tmp_path / "page.md")])
