"""Numbers of a report in Python and in JSON, the checks of values, and the bands."""

import json
import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from lbm_lora.report import BANDS, DenoiserScore, ImageScore, band_of
from lbm_lora.report.values import Float

ADAPTER = TypeAdapter(Float)


@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "1.5"), (-math.inf, '"-inf"'), (math.inf, '"inf"'), (math.nan, '"nan"')]
)
def test_json_has_words_for_numbers_that_it_lacks(value: float, text: str) -> None:
    assert json.dumps(ADAPTER.dump_python(value, mode="json"), allow_nan=False) == text
    back = ADAPTER.validate_json(text, strict=True)
    assert back == value or (math.isnan(back) and math.isnan(value))
    assert isinstance(ADAPTER.dump_python(value), float)  # words in JSON alone


@pytest.mark.parametrize("value", ["1.5", "Infinity", "+inf", "INF", True, None, [1.0]])
def test_nothing_else_is_a_number(value: object) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_json(json.dumps(value), strict=True)


def test_in_python_a_word_is_no_number() -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python("inf", strict=True)


@pytest.mark.parametrize("wrong", [{"error": "0.5"}, {"error": None}, {}])
def test_values_are_checked_when_they_are_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DenoiserScore(timestep=1000.0, **wrong)


def test_values_do_not_change() -> None:
    score = ImageScore(steps=1, psnr=40, ssim=1.0)
    assert score.psnr == 40.0
    with pytest.raises(FrozenInstanceError):
        score.psnr = 41.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("error", "band"),
    [
        (0.0, "excellent"),
        (0.0499, "excellent"),
        (0.05, "good"),
        (0.4999, "good"),
        (0.5, "poor"),
        (0.9999, "poor"),
        (1.0, "poor"),  # not above 100 %
        (1.0001, "noise"),
        (5.0, "noise"),
        (math.inf, "noise"),
        (math.nan, "noise"),
    ],
)
def test_bands(error: float, band: str) -> None:
    assert band_of(error) == band


def test_the_documented_bounds() -> None:
    assert [(name, bound) for name, bound, _ in BANDS] == [
        ("excellent", 0.05),
        ("good", 0.5),
        ("poor", 1.0),
        ("noise", math.inf),
    ]
