"""The fidelity page and its chart, on made-up results."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.fidelity.__main__ import main
from benchmarks.fidelity.numbers import RANKS, sets_of
from benchmarks.fidelity.page import chart, report, write_page


def made(first: float, *, smaller: int = 1, predicted: bool = False, ranks: tuple[int, ...] = RANKS) -> dict[str, Any]:
    """A set of two images 4 dB apart: `first` dB at rank 1 and 10 dB for each doubling of the matrices."""
    files = {
        f"r{rank}": {
            "nbytes": 10**6 + 800_000 * rank // smaller,
            "matrix_bytes": 800_000 * rank // smaller,
            "denoiser_psnr": [first + 10 * index - 2, first + 10 * index + 2],
            "image_psnr": [first + 10 * index - 3, first + 10 * index + 1],
            "error_db": [-first - 10 * index] * 2,
            "predicted": {"error": 0.1, "foreseen": 0.01} if predicted else None,
        }
        for index, rank in enumerate(ranks)
    }
    return {"seconds": 7.0, "files": files}


def result(**sets: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "theme": "fidelity",
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python -m benchmarks.fidelity",
        "machine": {"cpu": "A CPU", "cores": 4, "cores used": 1},
        "versions": {"commit": "1234abcd", "torch": "2.9", "python": "3.11"},
        "calibration": {"source": "renders", "images": 64},
        "refinement": {"images": 250},
        "calibration_seconds": {"full": 31.0, "photos": 2.0},
        "held": ["a.png", "b.png"],
        "base": {"denoiser_psnr": [9.0, 11.0], "image_psnr": [8.0, 10.0]},
        "sets": {"plain": made(20), **sets},
    }


CALIBRATED = {"full": made(50, predicted=True), "small": made(20, smaller=40, predicted=True)}


def test_methods_stand_beside_plain_of_the_same_size() -> None:
    page = report(result(**CALIBRATED))
    assert "2 held-out images" in page
    assert "measured on 64 images (renders)" in page
    assert "The base without a LoRA: denoiser 10.0 (9.0), decoded 9.0 (8.0)." in page
    assert "| 4.20 MB (rank 4) | 40.0 (38.0) | 70.0 (68.0) | +30.0 | 0 |" in page
    assert "| 4.20 MB (rank 4) | 39.0 (37.0) | 69.0 (67.0) | +30.0 | 0 |" in page
    assert "| rank 4 | -40.0 | 3.20 / 4.20 | 40.0 / 3.9 |" in page
    assert "plain's file of the lowest rank contains 1.00 MB" in page
    assert "| 1.80 MB, fp16 | -40.0 | -20.0 | -50.0 | -30.0 |" in page
    assert "without statistics (full is the calibrated set, including a run of each file): plain 7 s, full 7 s" in page
    assert "Measuring statistics: full 31 s, photos 2 s." in page
    assert "\n\n\n" not in page


def test_the_page_has_a_section_for_what_was_made() -> None:
    few = report(result(**CALIBRATED))
    for title in ("Images to calibrate on", "Precision of the file", "Cheaper statistics", "twice the rank for convs"):
        assert title not in few
    page = report(
        result(
            **CALIBRATED,
            inputs=made(30),
            refined=made(60),
            images_16=made(49),
            images_4=made(48),
            photos=made(45),
            int8=made(60, predicted=True),
            int8_small=made(30, smaller=40, predicted=True),
            diagonal=made(40),
            plain_convs=made(25, ranks=RANKS[:-1]),
        )
    )
    assert "| size | 4 | 16 | 64 | 4 photos instead |" in page
    assert (
        "+ input statistics +10.0 dB, + sensitivities of all outputs (calibrated) +20.0 dB, + refined +10.0 dB." in page
    )
    assert "| size | fp16 | int8 |" in page
    assert "| size | dense moments | both diagonals |" in page
    assert "| 4.20 MB (ranks 4 and 8) | 45.0 (43.0) | 44.0 (42.0) | -45.0 |" in page
    assert "in 8 bits: times fewer bytes, matrices / file" in page
    assert "MB, int8 |" in page


def test_the_page_and_its_chart_are_written(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps(result(**CALIBRATED)))
    assert write_page(tmp_path, tmp_path / "page.md") == tmp_path / "page.md"
    assert (tmp_path / "page.md").read_text().startswith("# Fidelity")
    names = set(ElementTree.parse(tmp_path / "images" / "fidelity.svg").getroot().itertext())
    assert {"plain", "calibrated"} <= names
    assert "refined" not in names


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
