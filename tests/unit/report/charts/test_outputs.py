"""The figures of the outputs, as values."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lbm_lora.report import OutputComparison
from lbm_lora.report.charts.outputs import error_by_timestep, output_figures, psnr_by_image, psnr_by_nbytes


def points(figure: dict[str, Any], *, rings: bool = False) -> dict[str, list[tuple[float, float]]]:
    """Trace -> its points, of the means or of the worst values."""
    traces = [trace for trace in figure["data"] if (trace.get("showlegend") is False) == rings]
    return {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in traces}


def test_errors_along_the_bridge(outputs: OutputComparison) -> None:
    figure = error_by_timestep(outputs)
    assert points(figure) == {"base": [(1000, 0.6), (500, 0.7)], "base + LoRA": [(1000, 0.02), (500, 0.04)]}
    assert points(figure, rings=True) == {"base": [(1000, 0.7), (500, 0.8)], "base + LoRA": [(1000, 0.04), (500, 0.05)]}
    axis = figure["layout"]["xaxis"]
    assert axis["range"][0] > 1000 > 500 > axis["range"][1]  # from the source on
    assert "worst 4.00 %, cup.png" in figure["data"][3]["customdata"][0][0]
    json.dumps(figure, allow_nan=False)


def test_an_error_of_0_stands_at_the_edge(
    outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]
) -> None:
    figure = error_by_timestep(build_outputs(outputs.images[0]))
    low, _ = figure["layout"]["yaxis"]["range"]
    exact = points(figure)["base + LoRA"][0][1]
    assert 10**low < exact < 0.03
    assert "mean 0 %" in figure["data"][2]["customdata"][0][0]


def test_each_image_at_each_number_of_steps(outputs: OutputComparison) -> None:
    figure = psnr_by_image(outputs)
    assert figure is not None
    found = points(figure)
    assert found["base, 1 step"] == [(0, 18.25), (1, 14.0)]  # cup.png is the worst of the LoRA
    assert found["base + LoRA, 2 steps"] == [(0, 39.0), (1, 41.0)]
    top = found["base + LoRA, 1 step"][1][1]
    assert 41 < top < figure["layout"]["yaxis"]["range"][1]  # equal images
    trace = next(trace for trace in figure["data"] if trace["name"] == "base + LoRA, 1 step")
    assert trace["marker"]["symbol"] == ["circle", "triangle-up"]
    assert "equal dB" in trace["customdata"][1][0]
    json.dumps(figure, allow_nan=False)


def test_one_image_needs_no_figure(outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]) -> None:
    assert psnr_by_image(build_outputs(outputs.images[0])) is None


def test_many_variants_are_compared_at_the_fewest_steps(several: OutputComparison) -> None:
    figure = psnr_by_image(several)
    assert figure is not None
    assert set(points(figure)) == {f"{name}, 1 step" for name in ("base", "base + LoRA", "small", "other")}


def test_like_is_joined_with_like(several: OutputComparison) -> None:
    big, small, other = several.loras
    for change in ({"method": "calibrated"}, {"dtype": "fp16"}, {"split": "conv rank 1/2 of rank"}):
        figure = psnr_by_nbytes(replace(several, loras=(big, replace(small, **change), other)))
        assert figure is not None
        assert sorted(map(len, points(figure).values())) == [1, 1, 1]


def test_points_are_labelled(several: OutputComparison) -> None:
    figure = psnr_by_nbytes(several)
    assert figure is not None
    labels = {trace["name"]: trace["text"] for trace in figure["data"] if "text" in trace}
    assert labels == {
        "fixed, bf16, equal ranks": ["rank 4<br>20.0 kB", "rank 16<br>3.00 MB"],
        "calibrated, fp16": ["1.00 MB"],
    }
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < math.log10(0.02) < math.log10(3) < high
    assert set(figure["layout"]["xaxis"]["ticktext"]) > {"0.02", "0.1", "1", "2"}


def test_a_curve_for_each_kind_of_file(several: OutputComparison, outputs: OutputComparison) -> None:
    figure = psnr_by_nbytes(several)
    assert figure is not None
    means = points(figure)
    assert means["fixed, bf16, equal ranks"] == [(0.02, 16.125), (3.0, 40.5)]  # by size, not by the order of the files
    assert means["calibrated, fp16"] == [(1.0, 40.5)]
    assert points(figure, rings=True)["fixed, bf16, equal ranks"] == [(0.02, 14.0), (3.0, 40.5)]
    colors = {trace["name"]: trace["marker"]["color"] for trace in figure["data"]}
    assert len(set(colors.values())) == 2
    assert figure["layout"]["xaxis"]["type"] == "log"
    json.dumps(figure, allow_nan=False)
    assert psnr_by_nbytes(outputs) is None
    assert psnr_by_nbytes(replace(several, loras=several.loras[:1])) is None


def test_figures_without_anything_to_draw_are_left_out(
    several: OutputComparison, outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]
) -> None:
    assert list(output_figures(several)) == ["outputs-bytes", "outputs-timesteps", "outputs-images"]
    assert list(output_figures(build_outputs(outputs.images[0]))) == ["outputs-timesteps"]
