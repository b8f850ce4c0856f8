"""The arithmetic of the fidelity benchmark, on made-up results."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.fidelity import numbers
from benchmarks.fidelity.numbers import RANKS, TARGETS, below, bytes_at, covered, savings, sets_of, surprises


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


def test_other_kinds_of_images_and_timesteps_are_read() -> None:
    plain = sets()["plain"]
    assert plain["noise:error_db"][0].tolist() == [-18, -12]
    assert "photos:error_db" not in plain
    assert plain["timesteps_db"][0].tolist() == [-21, -16]
    auto = sets(auto_refit=made(40, off=2))["auto_refit"]
    assert surprises(auto) == pytest.approx([2.0] * 5)
    assert surprises(auto, "alike") == pytest.approx([2.0] * 5)
    assert surprises(auto, "noise") == pytest.approx([7.0 - 20 * math.log10(2)] * 5)


def test_images_within_the_interval_are_counted() -> None:
    assert covered(sets(auto_refit=made(40, off=2))["auto_refit"], "alike") == pytest.approx([1.0] * 5)  # 2 + 3 < 6 dB
    assert covered(sets(auto_refit=made(40, off=4))["auto_refit"], "alike") == pytest.approx([0.5] * 5)
    assert covered(sets(auto_refit=made(40, off=4))["auto_refit"], "noise") == pytest.approx([0.5] * 5)  # 8 > 5.5 dB
    older = made(40, off=4)
    for one in older["files"].values():
        del one["predicted"]["shifted_within"]
    assert np.isnan(covered(sets(auto_refit=older)["auto_refit"], "noise")).all()


def test_older_results_have_no_predictions_for_other_images() -> None:
    older = made(40, off=2)
    for one in older["files"].values():
        one["predicted"]["shifted"] = 0.1
    found = sets(auto_refit=older)["auto_refit"]
    assert np.isnan(surprises(found, "noise")).all()
    assert surprises(found) == pytest.approx([2.0] * 5)


def test_targets_that_are_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_PREDICTED_MB", (0, 1))
    monkeypatch.setattr(numbers, "SHIFTED", {"noise": "noise"})
    found = sets(int8=made(30), auto_refit=made(40, smaller=32, off=-2), auto_small=made(20, smaller=100, off=-2))
    rows = [target.row(found) for target in TARGETS]
    assert [row[2] for row in rows[:5]] == ["10 dB", "0", "20 dB", "0", "0"]
    assert [row[3] for row in rows[:5]] == ["met"] * 5
    assert rows[5][3] == "met"
    assert [row[2] for row in rows[-2:]] == ["2 dB", "3.02 dB"]
    assert [row[3] for row in rows[-2:]] == ["met"] * 2


def test_targets_that_are_missed_say_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_PREDICTED_MB", (0, 1))
    auto = made(24, off=5)
    auto["files"]["r16"]["held_out"]["denoiser_psnr"] = [0, 0]  # rank 16 has no target of its own over int8
    auto["files"]["r2"]["held_out"]["denoiser_psnr"] = [0, 99]
    words = verdicts(sets(auto_refit=auto, int8=made(20), auto_small=made(24, off=1)))
    assert words[:2] == ["missed by 1 dB", "missed by 3"]
    assert words[3] == "missed by 3"
    assert words[5].startswith("missed by 2")
    assert words[7] == "missed by 3 dB"


def test_predictions_of_other_sizes_have_no_target() -> None:
    assert verdicts(sets(auto_refit=made(40, off=9), auto_small=made(24, off=9)))[7] == "not measured"


def test_what_was_not_made_has_no_verdict() -> None:
    assert set(verdicts(sets())) == {"not measured"}
