"""The figures of the weights, as values."""

import json
import math
from collections.abc import Callable

import pytest

from lbm_lora.adapter import LedgerRow, Status
from lbm_lora.report import WeightReport
from lbm_lora.report.charts.weights import (
    error_by_module,
    error_by_noise,
    error_by_rank,
    error_histogram,
    weight_figures,
)

Build = Callable[..., WeightReport]
Row = Callable[..., LedgerRow]


def points(figure: dict[str, object]) -> dict[str, list[tuple[float, float]]]:
    """Trace -> its points."""
    return {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in figure["data"]}  # type: ignore[index,union-attr]


def test_every_changed_tensor_is_a_point_of_its_kind(weights: WeightReport) -> None:
    found = points(error_by_module(weights))
    assert {name: [y for _, y in values] for name, values in found.items()} == {
        "linear": [pytest.approx(0.3), pytest.approx(0.6)],
        "conv": [pytest.approx(0.02)],
        "dense": [pytest.approx(0.02, rel=0.4)],  # exact: near the lower edge
        "left out": [1.0],
    }
    assert sorted(x for values in found.values() for x, _ in values) == [0, 1, 2, 3, 4]


def test_zero_and_infinity_stand_at_the_edges_with_their_true_values(build: Build, row: Row) -> None:
    errors = (0.0, 0.01, 0.1, math.inf)
    report = build(*(row(f"l.{i}.weight", Status.LORA, (4, 4), error=e, rank=2) for i, e in enumerate(errors)))
    figure = error_by_module(report)
    (trace,) = figure["data"]
    low, high = figure["layout"]["yaxis"]["range"]
    assert 10**low < trace["y"][0] < 0.01
    assert 0.1 < trace["y"][3] < 10**high
    assert trace["marker"]["symbol"] == ["triangle-down", "circle", "circle", "triangle-up"]
    assert "relative error inf" in trace["customdata"][3][1]
    json.dumps(figure, allow_nan=False)


def test_the_axis_reaches_to_the_next_bound_of_a_band(build: Build, row: Row) -> None:
    report = build(row("a.weight", Status.LORA, (4, 4), error=0.003, rank=2))
    axis = error_by_module(report)["layout"]["yaxis"]
    assert axis["range"][1] > math.log10(0.05)
    assert "5 %" in axis["ticktext"]


@pytest.mark.parametrize("error", [1e-9, 1e-6, 0.0499999, 0.05, 0.3, 0.5, 0.99, 1.0, 40.0])
def test_the_histogram_counts_every_module_in_its_band(build: Build, row: Row, error: float) -> None:
    errors = (0.02, error, 0.7)
    report = build(*(row(f"l.{i}.weight", Status.LORA, (4, 4), error=e, rank=2) for i, e in enumerate(errors)))
    counts = {trace["name"]: sum(trace["y"]) for trace in error_histogram(report)["data"]}
    assert counts == {f"{name}: {count}": count for name, count in report.bands.items() if count}


def test_equal_errors_make_one_bar(build: Build, row: Row) -> None:
    report = build(*(row(f"l.{i}.weight", Status.LORA, (4, 4), error=0.25, rank=2) for i in range(3)))
    (trace,) = error_histogram(report)["data"]
    assert [count for count in trace["y"] if count] == [3]


def test_noise_needs_half_precision(weights: WeightReport, build: Build, row: Row) -> None:
    figure = error_by_noise(weights)
    assert figure is not None
    assert [x for x, _ in points(figure)["conv"]] == [pytest.approx(0.02)]
    assert error_by_noise(build(row("a.weight", Status.LORA, (4, 4), error=0.1, rank=2, noise=0.0))) is None


def test_ranks_are_shares_of_their_bound(weights: WeightReport, build: Build, row: Row) -> None:
    figure = error_by_rank(weights)
    assert figure is not None
    assert points(figure) == {
        "linear": [(pytest.approx(2 / 12), pytest.approx(0.3)), (1.0, pytest.approx(0.6))],
        "conv": [(0.5, pytest.approx(0.02))],
    }
    full = [row(f"l.{i}.weight", Status.LORA, (4, 4), error=0.1, rank=4) for i in range(2)]
    assert error_by_rank(build(*full)) is None


def test_hover_names_are_escaped_and_folded(build: Build, row: Row) -> None:
    name = "<a href='javascript:1'>." + "part." * 20 + "weight"
    (trace,) = error_by_module(build(row(name, Status.LORA, (4, 4), error=0.1, rank=2)))["data"]
    raw, hover = trace["customdata"][0]
    assert raw == name
    assert hover.startswith("<b>&lt;a href='javascript:1'&gt;.part.")
    assert max(map(len, hover.replace("&lt;", "<").replace("&gt;", ">").split("<br>"))) < 60


def test_figures_without_anything_to_draw_are_left_out(build: Build, row: Row) -> None:
    assert weight_figures(build()) == {}
    dense = build(row("a.bias", Status.DENSE, (4,), error=0.0, noise=0.0))
    assert list(weight_figures(dense)) == ["plot-modules"]
