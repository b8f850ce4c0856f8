"""The fidelity benchmark's choice of pictures, its numbers and its page, on made-up results."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.fidelity import _joined as joined  # pyright: ignore[reportPrivateUsage]
from benchmarks.fidelity import _spread as spread  # pyright: ignore[reportPrivateUsage]
from benchmarks.fidelity import main
from benchmarks.fidelity_chart import chart
from benchmarks.fidelity_numbers import Verdict, below, bytes_at, savings, verdicts
from benchmarks.fidelity_page import render, write_page

RANKS = (1, 2, 4, 8, 16)


def file(nbytes: int, psnr: float, error: float, predicted: float | None = None) -> dict[str, Any]:
    """Two pictures, 4 dB apart; 100 bytes beside the matrices."""
    values = [psnr - 2, psnr + 2]
    prediction = None if predicted is None else {"error": 10 ** (predicted / 20), "foreseen": 10 ** (predicted / 10)}
    return {
        "nbytes": nbytes,
        "matrix_bytes": nbytes - 100,
        "denoiser_psnr": values,
        "picture_psnr": [value - 1 for value in values],
        "error_db": [error - 3, error + 3],
        "predicted": prediction,
    }


def made(first: float, *, smaller: int = 1, words: str = "", off: float | None = None) -> dict[str, Any]:
    """A set: `first` dB at rank 1, 10 dB for each doubling of the matrices, predictions that are `off`."""
    sizes = [100 + 800 * rank // smaller for rank in RANKS]
    files = {
        f"r{rank}" if words == "r" else f"{size}B": file(
            size, first + 10 * index, -first - 10 * index, None if off is None else -first - 10 * index - off
        )
        for index, (rank, size) in enumerate(zip(RANKS, sizes, strict=True))
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
        "calibration": {"source": "renders", "pictures": [64]},
        "refinement": {"pictures": [250]},
        "calibration_seconds": {"full": 31.0},
        "held": ["a.png", "b.png"],
        "base": {"denoiser_psnr": [9.0, 11.0], "picture_psnr": [8.0, 10.0]},
        "sets": {"plain": made(20, words="r"), **sets},
    }


def measured(found: dict[str, Any]) -> dict[str, Verdict]:
    return {verdict.what.partition(":")[0]: verdict for verdict in verdicts(found)}


def test_pictures_are_spread_over_the_list() -> None:
    paths = [Path(f"{index}.png") for index in range(10)]
    assert [path.stem for path in spread(paths, 4)] == ["0", "2", "5", "7"]
    assert spread(paths, 99) == tuple(paths)


def test_folds_are_joined_picture_by_picture() -> None:
    one, other = {"seconds": 1.5, "files": {"r1": file(900, 20, -20)}}, made(30, words="r")
    other["files"] = {"r1": other["files"]["r1"]}
    found = joined([one, other])
    assert found["seconds"] == 8.5
    assert found["files"]["r1"]["denoiser_psnr"] == [18, 22, 28, 32]
    assert found["files"]["r1"]["nbytes"] == 900


@pytest.mark.parametrize(
    ("error", "expected"), [(-10.0, 200.0), (-20.0, 400.0), (-25.0, 400 * 2**0.5), (-5.0, 200.0), (-31.0, None)]
)
def test_bytes_lie_between_those_measured(error: float, expected: float | None) -> None:
    found = bytes_at([(200, -10.0), (400, -20.0), (800, -30.0)], error)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_first_size_that_is_good_enough_counts() -> None:
    assert bytes_at([(100, 0.0), (200, -20.0), (400, -5.0), (800, -30.0)], -20.0) == pytest.approx(200)


def test_savings_are_plains_bytes_over_those_needed() -> None:
    found = savings(result(full=made(20, smaller=4)), ("full",), "matrix_bytes")
    assert found == {rank: pytest.approx(4.0) for rank in RANKS}
    assert savings(result(full=made(10)), ("full",), "matrix_bytes")[16] is None


def test_a_picture_counts_once_where_one_of_its_numbers_is_worse() -> None:
    plain, other = file(900, 20, -20), file(900, 20, -20)
    assert below(other, plain) == 0
    other["denoiser_psnr"], other["picture_psnr"] = [18, 21], [99, 20]
    assert below(other, plain) == 1
    other["picture_psnr"] = [16, 20]
    assert below(other, plain) == 2


def test_targets_that_are_met() -> None:
    sets = {"full": made(40, smaller=10, off=2), "small": made(20, smaller=40, off=-2), "refined": made(45, smaller=10)}
    found = list(measured(result(**sets)).values())
    assert [verdict.words for verdict in found[:4]] == ["met"] * 4
    assert [verdict.measured for verdict in found[:4]] == [20, 20, 0, 5]
    assert found[-1].measured == pytest.approx(2)


def test_targets_that_are_missed_say_by_how_much() -> None:
    full = made(24, off=5)
    full["files"]["900B"]["denoiser_psnr"] = [0, 0]  # rank 1 has no target
    full["files"]["1700B"]["denoiser_psnr"] = [0, 99]
    found = [verdict.words for verdict in verdicts(result(full=full, small=made(24, off=1)))]
    assert found[0] == "missed by 11 dB"
    assert found[1] == "missed by 4 dB"
    assert found[2] == "missed by 1"
    assert found[3] == "not measured"
    assert found[4].startswith("missed by 6")
    assert found[-1] == "missed by 2 dB"


def test_what_was_not_made_has_no_verdict() -> None:
    assert {verdict.words for verdict in verdicts(result())} == {"not measured"}


def test_the_page_has_a_section_for_what_was_made(tmp_path: Path) -> None:
    sets = {"full": made(50, off=1), "small": made(20, smaller=40, off=1), "images_4": made(48), "photos": made(45)}
    (tmp_path / "f.json").write_text(json.dumps(result(**sets)))
    assert write_page(tmp_path, tmp_path / "page.md") == tmp_path / "page.md"
    page = (tmp_path / "page.md").read_text()
    assert "| 0.00 MB (rank 4) | 40.0 (38.0) | 70.0 (68.0) | +30.0 | 0 |" in page
    assert "| size | 4 | 64 | 4 photos instead |" in page
    assert "2 held-out pictures" in page
    assert "+ refined" not in page
    assert "Precision of the file" not in page
    assert "MB, fp16 |" in page
    assert "refined" in render(result(**sets, refined=made(60)))
    split = {"seconds": 1.0, "files": {f"r{rank}": file(100 + 1200 * rank, 30, -10.0 * rank) for rank in (1, 2, 4, 8)}}
    assert "| 0.00 MB (ranks 4 and 8) | 30.0 (28.0) |" in render(result(**sets, plain_convs=split))
    in_8_bits = render(result(**sets, int8=made(60, off=1), int8_small=made(30, smaller=40, off=1)))
    assert "in 8 bits: times fewer bytes" in in_8_bits
    assert "MB, int8 |" in in_8_bits
    assert "| size | fp16 | int8 |" in in_8_bits
    names = ElementTree.parse(tmp_path / "images" / "fidelity.svg").getroot().itertext()
    assert {"plain", "calibrated"} <= set(names)


def test_a_page_needs_a_result(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no result yet"):
        main(["page", "--results", str(tmp_path), "--to", str(tmp_path / "page.md")])


def test_lines_of_a_chart_rise_with_the_decibels() -> None:
    root = ElementTree.fromstring(chart({"a": [(1e6, 20.0), (4e6, 60.0)], "b": [(2e6, 40.0)]}))
    line = next(element for element in root if element.tag.endswith("polyline"))
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x1 < x2
    assert y1 > y2
    circles = [element.attrib for element in root if element.tag.endswith("circle")]
    assert float(circles[2]["cx"]) == pytest.approx((x1 + x2) / 2, abs=0.1)
    assert float(circles[2]["cy"]) == pytest.approx((y1 + y2) / 2, abs=0.1)


def test_pictures_that_are_measured_are_not_calibrated_on(tmp_path: Path) -> None:
    from lbm_lora import bundled

    with pytest.raises(SystemExit, match="holds pictures that are measured on"):
        main(["--work", str(tmp_path), "--calibration_images", str(bundled.PAIRS / "*.source.png")])
