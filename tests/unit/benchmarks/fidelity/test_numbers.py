"""The arithmetic of the fidelity benchmark, on made-up results."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.fidelity.numbers import RANKS, TARGETS, below, bytes_at, savings, sets_of


def file(nbytes: int, psnr: float, error: float, predicted: float | None = None) -> dict[str, Any]:
    """Two images, 4 dB apart; 100 bytes beside the matrices."""
    values = [psnr - 2, psnr + 2]
    prediction = None if predicted is None else {"error": 10 ** (predicted / 20), "foreseen": 10 ** (predicted / 10)}
    return {
        "nbytes": nbytes,
        "matrix_bytes": nbytes - 100,
        "denoiser_psnr": values,
        "image_psnr": [value - 1 for value in values],
        "error_db": [error - 3, error + 3],
        "predicted": prediction,
    }


def made(first: float, *, smaller: int = 1, off: float | None = None) -> dict[str, Any]:
    """A set: `first` dB at rank 1, 10 dB for each doubling of the matrices, predictions that are `off`."""
    files: dict[str, Any] = {}
    for index, rank in enumerate(RANKS):
        error = -first - 10 * index
        predicted = None if off is None else error - off
        files[f"r{rank}"] = file(100 + 800 * rank // smaller, first + 10 * index, error, predicted)
    return {"seconds": 7.0, "files": files}


def sets(**others: Any) -> Any:
    return sets_of({"sets": {"plain": made(20), **others}})


def verdicts(found: Any) -> list[str]:
    return [verdict for *_, verdict in [target.row(found) for target in TARGETS]]


@pytest.mark.parametrize(
    ("error", "expected"), [(-10.0, 200.0), (-20.0, 400.0), (-25.0, 400 * 2**0.5), (-5.0, 200.0), (-31.0, math.nan)]
)
def test_bytes_lie_between_those_measured(error: float, expected: float) -> None:
    assert bytes_at([(200, -10.0), (400, -20.0), (800, -30.0)], error) == pytest.approx(expected, nan_ok=True)


def test_the_first_size_that_is_good_enough_counts() -> None:
    assert bytes_at([(100, 0.0), (200, -20.0), (400, -5.0), (800, -30.0)], -20.0) == pytest.approx(200)


def test_savings_are_plains_bytes_over_those_needed() -> None:
    assert savings(sets(full=made(20, smaller=4)), "calibrated", "matrix_bytes") == pytest.approx([4.0] * 5)
    assert math.isnan(savings(sets(full=made(10)), "calibrated", "matrix_bytes")[-1])


def test_an_image_counts_once_where_one_of_its_numbers_is_worse() -> None:
    found = sets(full=made(20))
    plain, full = found["plain"], {**found["full"]}
    assert below(full, plain).tolist() == [0] * 5
    full["denoiser_psnr"] = np.array([[18, 21], [50, 50], [50, 50], [60, 60], [70, 70]])
    assert below(full, plain).tolist() == [1, 0, 0, 0, 0]


def test_predictions_are_in_decibels() -> None:
    found = sets(full=made(20, off=2))["full"]
    assert found["predicted_db"][:2] == pytest.approx([-22, -32])
    assert found["foreseen_db"][0] == pytest.approx(-44)
    assert np.isnan(sets()["plain"]["predicted_db"]).all()


def test_targets_that_are_met() -> None:
    found = sets(full=made(40, smaller=10, off=2), small=made(20, smaller=40, off=-2), refined=made(45, smaller=10))
    rows = [target.row(found) for target in TARGETS]
    assert [row[3] for row in rows[:4]] == ["met"] * 4
    assert [row[2] for row in rows[:4]] == ["20 dB", "20 dB", "0", "5 dB"]
    assert rows[-1][2:] == ("2 dB", "met")


def test_targets_that_are_missed_say_by_how_much() -> None:
    full = made(24, off=5)
    full["files"]["r1"]["denoiser_psnr"] = [0, 0]  # rank 1 has no target
    full["files"]["r2"]["denoiser_psnr"] = [0, 99]
    words = verdicts(sets(full=full, small=made(24, off=1)))
    assert words[:4] == ["missed by 11 dB", "missed by 4 dB", "missed by 1", "not measured"]
    assert words[4].startswith("missed by 6")
    assert words[-1] == "missed by 2 dB"


def test_what_was_not_made_has_no_verdict() -> None:
    assert set(verdicts(sets())) == {"not measured"}
