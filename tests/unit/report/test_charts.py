"""The plots, as values."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from lbm_lora.adapter import LedgerRow, Status
from lbm_lora.fidelity.outputs import OutputComparison
from lbm_lora.fidelity.weights import WeightReport
from lbm_lora.report.charts import (
    error_by_module,
    error_by_noise,
    error_by_rank,
    error_histogram,
    output_figures,
    psnr_by_image,
    psnr_by_nbytes,
    weight_figures,
)

Build = Callable[..., WeightReport]
Row = Callable[..., LedgerRow]


def points_of(figure: dict[str, object]) -> dict[str, list[tuple[float, float]]]:
    """Trace -> its points_of."""
    return {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in figure["data"]}  # type: ignore[index,union-attr]


def test_every_changed_tensor_is_a_point_of_its_kind(weights: WeightReport) -> None:
    found = points_of(error_by_module(weights))
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


@pytest.mark.parametrize("error", [1e-9, 0.0499999, 0.05, 1.0, 40.0])
def test_the_histogram_counts_every_module_in_its_band(build: Build, row: Row, error: float) -> None:
    errors = (0.02, error, 0.7)
    report = build(*(row(f"l.{i}.weight", Status.LORA, (4, 4), error=e, rank=2) for i, e in enumerate(errors)))
    counts = {trace["name"]: sum(trace["y"]) for trace in error_histogram(report)["data"]}
    assert counts == {f"{name}: {count}": count for name, count in report.bands.items() if count}


def test_noise_needs_half_precision(weights: WeightReport, build: Build, row: Row) -> None:
    figure = error_by_noise(weights)
    assert [x for x, _ in points_of(figure)["conv"]] == [pytest.approx(0.02)]
    exact = row("a.weight", Status.LORA, (4, 4), error=0.1, rank=2, noise=0.0)
    assert "plot-noise" not in weight_figures(build(exact))


def test_ranks_are_shares_of_their_bound(weights: WeightReport, build: Build, row: Row) -> None:
    figure = error_by_rank(weights)
    assert points_of(figure) == {
        "linear": [(pytest.approx(2 / 12), pytest.approx(0.3)), (1.0, pytest.approx(0.6))],
        "conv": [(0.5, pytest.approx(0.02))],
    }
    full = [row(f"l.{i}.weight", Status.LORA, (4, 4), error=0.1, rank=4) for i in range(2)]
    assert "plot-rank" not in weight_figures(build(*full))


def test_hover_names_are_escaped_and_folded(build: Build, row: Row) -> None:
    name = "<a href='javascript:1'>." + "part." * 20 + "weight"
    (trace,) = error_by_module(build(row(name, Status.LORA, (4, 4), error=0.1, rank=2)))["data"]
    raw, hover = trace["customdata"][0]
    assert raw == name
    assert hover.startswith("<b>&lt;a href='javascript:1'&gt;.part.")
    assert max(map(len, hover.replace("&lt;", "<").replace("&gt;", ">").split("<br>"))) < 60


def points(figure: dict[str, Any], *, rings: bool = False) -> dict[str, list[tuple[float, float]]]:
    """Trace -> its points, of the means or of the worst values."""
    traces = [trace for trace in figure["data"] if (trace.get("showlegend") is False) == rings]
    return {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in traces}


def test_each_image_at_each_number_of_steps(outputs: OutputComparison) -> None:
    figure = psnr_by_image(outputs)
    found = points(figure)
    assert found["base, 1 step"] == [(0, 18.25), (1, 14.0)]  # cup.png is the worst of the LoRA
    assert found["base + LoRA, 2 steps"] == [(0, 39.0), (1, 41.0)]
    top = found["base + LoRA, 1 step"][1][1]
    assert 41 < top < figure["layout"]["yaxis"]["range"][1]  # equal images
    trace = next(trace for trace in figure["data"] if trace["name"] == "base + LoRA, 1 step")
    assert trace["marker"]["symbol"] == ["circle", "triangle-up"]
    assert "equal dB" in trace["customdata"][1][1]
    json.dumps(figure, allow_nan=False)


def test_points_are_labelled(several: OutputComparison) -> None:
    figure = psnr_by_nbytes(several)
    labels = {trace["name"]: trace["text"] for trace in figure["data"] if "text" in trace}
    assert labels == {
        "fixed, bf16, equal ranks": ["rank 4<br>20.0 kB", "rank 16<br>3.00 MB"],
        "calibrated, fp16": ["1.00 MB"],
    }
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < math.log10(0.02) < math.log10(3) < high
    assert set(figure["layout"]["xaxis"]["ticktext"]) > {"0.02", "0.1", "1", "2"}


def test_a_curve_for_each_kind_of_file(several: OutputComparison) -> None:
    figure = psnr_by_nbytes(several)
    means = points(figure)
    assert means["fixed, bf16, equal ranks"] == [(0.02, 16.125), (3.0, 40.5)]  # by size, not by the order of the files
    assert means["calibrated, fp16"] == [(1.0, 40.5)]
    assert points(figure, rings=True)["fixed, bf16, equal ranks"] == [(0.02, 14.0), (3.0, 40.5)]
    colors = {trace["name"]: trace["marker"]["color"] for trace in figure["data"]}
    assert len(set(colors.values())) == 2
    assert figure["layout"]["xaxis"]["type"] == "log"
    json.dumps(figure, allow_nan=False)


def test_figures_without_anything_to_draw_are_left_out(
    several: OutputComparison, outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]
) -> None:
    assert list(output_figures(several)) == ["outputs-bytes", "outputs-timesteps", "outputs-images"]
    assert list(output_figures(build_outputs(outputs.images[0]))) == ["outputs-timesteps"]
