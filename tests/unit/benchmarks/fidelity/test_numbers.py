"""The arithmetic of the fidelity benchmark, on made-up results."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.fidelity.numbers import RANKS, below, bytes_at, covered, savings, sets_of


def file(nbytes: int, psnr: float, error: float, predicted: float | None = None) -> dict[str, Any]:
    """Two images, 4 dB apart; 100 bytes beside the matrices."""
    prediction = None
    if predicted is not None:
        ratio = 10 ** (predicted / 20)
        shifted = {"content": 2 * ratio, "larger": ratio, "smaller": ratio}
        prediction = {
            "error": ratio,
            "foreseen": ratio**2,
            "low": ratio / 2,
            "high": 2 * ratio,
            "shifted": shifted,
            "shifted_within": {"content": (ratio, 3 * ratio)},
        }
    return {
        "nbytes": nbytes,
        "matrix_bytes": nbytes - 100,
        "held_out": scores(psnr, error),
        "noise": scores(psnr - 5, error + 5),
        "alike": scores(psnr, error),
        "predicted": prediction,
    }


def scores(psnr: float, error: float) -> dict[str, Any]:
    values = [psnr - 2, psnr + 2]
    timesteps = {"1000": [error, error - 2], "500": [error + 4, error + 4]}
    images = [value - 1 for value in values]
    return {
        "denoiser_psnr": values,
        "image_psnr": images,
        "error_db": [error - 3, error + 3],
        "timesteps": timesteps,
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


@pytest.mark.parametrize(
    ("error", "expected"), [(-10.0, 200.0), (-20.0, 400.0), (-25.0, 400 * 2**0.5), (-5.0, 200.0), (-31.0, math.nan)]
)
def test_bytes_lie_between_those_measured(error: float, expected: float) -> None:
    assert bytes_at([(200, -10.0), (400, -20.0), (800, -30.0)], error) == pytest.approx(expected, nan_ok=True)


def test_the_first_size_that_is_good_enough_counts() -> None:
    assert bytes_at([(100, 0.0), (200, -20.0), (400, -5.0), (800, -30.0)], -20.0) == pytest.approx(200)


def test_savings_are_plains_bytes_over_those_needed() -> None:
    assert savings(sets(full=made(20, smaller=4)), "fp16", "matrix_bytes") == pytest.approx([4.0] * 5)
    assert math.isnan(savings(sets(full=made(10)), "fp16", "matrix_bytes")[-1])


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


def test_images_within_the_interval_are_counted() -> None:
    assert covered(sets(auto_refit=made(40, off=2))["auto_refit"], "alike") == pytest.approx([1.0] * 5)  # 2 + 3 < 6 dB
    assert covered(sets(auto_refit=made(40, off=4))["auto_refit"], "alike") == pytest.approx([0.5] * 5)
    assert covered(sets(auto_refit=made(40, off=4))["auto_refit"], "noise") == pytest.approx([0.5] * 5)  # 8 > 5.5 dB
    older = made(40, off=4)
    for one in older["files"].values():
        del one["predicted"]["shifted_within"]
    assert np.isnan(covered(sets(auto_refit=older)["auto_refit"], "noise")).all()
