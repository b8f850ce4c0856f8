"""Axes, and where values stand on them."""

import math

import pytest

from lbm_lora.report.charts.axes import Axis, Decibels


def test_an_axis_over_nothing_is_an_axis() -> None:
    axis = Axis.over([0.0, math.inf])
    assert axis.low < axis.high
    assert axis.layout("x")["tickvals"]


@pytest.mark.parametrize(("value", "place"), [(0.02, 0.02), (0.0, "low"), (math.inf, "high"), (math.nan, "high")])
def test_what_cannot_be_drawn_stands_near_an_edge(value: float, place: float | str) -> None:
    axis = Axis.over([0.01, 0.1])
    found = axis.place(value)
    assert 10**axis.low < found < 10**axis.high
    assert found == value if isinstance(place, float) else (found < 0.01) == (place == "low")


@pytest.mark.parametrize("values", [[30.0, 40.0], [30.0], [math.inf], [math.inf, 30.0]])
def test_the_axis_holds_every_place(values: list[float]) -> None:
    axis = Decibels.over(values)
    assert math.isfinite(axis.low)
    assert math.isfinite(axis.high)
    assert all(axis.low < axis.place(value) < axis.high for value in values)
