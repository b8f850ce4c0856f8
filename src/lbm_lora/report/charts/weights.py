"""The plots of a report's weights as Plotly figures: plain values, with colours as names of CSS variables (`@linear`).

The page's script puts in the colours of the reader's light or dark scheme. What the pointer shows is always the true
value, also of a point that stands at an edge (see `axes`) and is drawn as a triangle.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

from lbm_lora.adapter import Status
from lbm_lora.factorize import rank_bound
from lbm_lora.report.charts.axes import Axis, Figure
from lbm_lora.report.digest import kind_of, lora_rows, network_order
from lbm_lora.report.values import BANDS, band_of
from lbm_lora.report.weights import TensorResult, WeightReport, block_of
from lbm_lora.report.wording import dimensions, percent, printable

_KINDS = ("linear", "conv", "dense", "left out")
_BINS_PER_DECADE = 10  # whose edges come within 0.3 % of the bands' bounds, and are moved onto them
_LEAST_LABEL = 0.05  # share of the axis that a block must take to be named on it


def weight_figures(report: WeightReport) -> dict[str, Figure]:
    """Id of the page's element -> figure; those that there is nothing to draw for are left out."""
    if not report.rows:
        return {}
    figures = {
        "plot-modules": error_by_module(report),
        "plot-histogram": error_histogram(report) if report.matched else None,
        "plot-noise": error_by_noise(report),
        "plot-rank": error_by_rank(report),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def error_by_module(report: WeightReport) -> Figure:
    """The relative error of each tensor whose delta is stored or left out, in the order of the network."""
    rows = [row for row in network_order(report.rows) if row.status != Status.UNCHANGED]
    axis = Axis.over([row.relative_error for row in rows], reach=True)
    places = {row.name: float(index) for index, row in enumerate(rows)}
    labels, edges = _blocks(rows)
    return {
        "data": _scatter(rows, lambda row: places[row.name], lambda row: axis.place(row.relative_error)),
        "layout": {
            "xaxis": {
                "range": [-0.01 * len(rows) - 1, 1.01 * len(rows)],
                "tickvals": [place for place, _ in labels],
                "ticktext": [escape(printable(block), quote=False) for _, block in labels],
                "showgrid": False,
            },
            "yaxis": axis.layout("relative error", bounds=True),
            "shapes": [_edge(place) for place in edges] + _bounds(axis),
        },
    }


def error_histogram(report: WeightReport) -> Figure:
    """How many lora modules have which relative error, coloured by the documented bands."""
    values = [row.relative_error for row in lora_rows(report)]
    axis = Axis.over(values)
    edges = _bin_edges(axis)
    counts = _counts([axis.place(value) for value in values], edges)
    traces: list[Figure] = []
    for name, _, _ in BANDS:
        bins = [(low, high, n) for (low, high), n in zip(pairwise(edges), counts, strict=True) if band_of(low) == name]
        if any(n for _, _, n in bins):
            traces.append(_bars(name, bins))
    return {
        "data": traces,
        "layout": {
            "barmode": "overlay",
            "xaxis": _linear_in_log(axis.layout("relative error", bounds=True)),
            "yaxis": {"title": {"text": "modules"}, "rangemode": "tozero"},
        },
    }


def error_by_noise(report: WeightReport) -> Figure | None:
    """Error against noise floor, of the stored deltas; None where no tensor of tuned is in half precision."""
    rows = [row for row in report.rows if row.status in (Status.LORA, Status.DENSE) and 0 < row.noise_floor < math.inf]
    if not rows:
        return None
    noise = Axis.over([row.noise_floor for row in rows])
    error = Axis.over([row.relative_error for row in rows])
    ends = [10 ** max(noise.low, error.low), 10 ** min(noise.high, error.high)]
    line = {"type": "line", "x0": ends[0], "y0": ends[0], "x1": ends[1], "y1": ends[1], "layer": "below"}
    crosses = ends[0] < ends[1]
    return {
        "data": _scatter(rows, lambda row: row.noise_floor, lambda row: error.place(row.relative_error)),
        "layout": {
            "xaxis": noise.layout("noise floor"),
            "yaxis": error.layout("relative error"),
            "shapes": [line | {"line": {"color": "@muted", "width": 1, "dash": "dot"}}] if crosses else [],
        },
    }


def error_by_rank(report: WeightReport) -> Figure | None:
    """Error against the stored rank as a share of the highest that each matrix allows.

    None where all modules have the same share: there is nothing to compare.
    """
    rows = [row for row in lora_rows(report) if row.rank is not None and row.shape]
    ranks = {row.name: (row.rank or 0) / rank_bound(row.shape) for row in rows}
    if len(set(ranks.values())) < 2:
        return None
    error = Axis.over([row.relative_error for row in rows])
    axis = Axis.over(list(ranks.values()))
    return {
        "data": _scatter(rows, lambda row: ranks[row.name], lambda row: error.place(row.relative_error)),
        "layout": {"xaxis": axis.layout("rank / full rank"), "yaxis": error.layout("relative error")},
    }


def _scatter(
    rows: Sequence[TensorResult], x: Callable[[TensorResult], float], y: Callable[[TensorResult], float]
) -> list[Figure]:
    """One trace for each kind that occurs."""
    traces: list[Figure] = []
    for kind in _KINDS:
        members = [row for row in rows if _trace_of(row) == kind]
        if members:
            color = "@excluded" if kind == "left out" else f"@{kind}"
            symbols = [_symbol(row.relative_error) for row in members]
            marker = {"color": color, "size": 5, "opacity": 0.75, "line": {"width": 0}}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": kind,
                    "x": [x(row) for row in members],
                    "y": [float(f"{y(row):.5g}") for row in members],
                    "customdata": [[row.name, _hover(row)] for row in members],
                    "hovertemplate": "%{customdata[1]}<extra></extra>",
                    "marker": marker | ({"symbol": symbols} if set(symbols) != {"circle"} else {}),
                }
            )
    return traces


def _trace_of(row: TensorResult) -> str:
    return "left out" if row.status == Status.EXCLUDED else kind_of(row)


def _symbol(error: float) -> str:
    return "circle" if 0 < error < math.inf else "triangle-down" if error == 0 else "triangle-up"


def _hover(row: TensorResult) -> str:
    """What the pointer shows, in Plotly's own markup: the name is escaped, since it comes from a file."""
    rank = f", rank {row.rank} of {rank_bound(row.shape)}" if row.rank is not None and row.shape else ""
    lines = [
        f"<b>{'<br>'.join(escape(part, quote=False) for part in _folded(printable(row.name)))}</b>",
        f"{_trace_of(row)} {dimensions(row.shape)}{rank}",
        f"relative error {percent(row.relative_error)}, mean {percent(row.relative_mean_error)}",
        f"noise floor {percent(row.noise_floor)}",
    ]
    return "<br>".join(lines)


def _folded(name: str, width: int = 40) -> list[str]:
    """A dotted name in pieces that fit a phone."""
    lines = [""]
    for part in name.replace(".", ".\n").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def _blocks(rows: Sequence[TensorResult]) -> tuple[list[tuple[float, str]], list[float]]:
    """Where the names of the larger blocks stand on an axis of rows, and where one block ends."""
    starts = [i for i, row in enumerate(rows) if i == 0 or block_of(row.name) != block_of(rows[i - 1].name)]
    labels = [
        ((start + end - 1) / 2, block_of(rows[start].name))
        for start, end in pairwise([*starts, len(rows)])
        if end - start >= _LEAST_LABEL * len(rows)
    ]
    return labels, [start - 0.5 for start in starts[1:]]


def _edge(place: float) -> Figure:
    line = {"color": "@line", "width": 1}
    return {"type": "line", "x0": place, "x1": place, "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line": line}


def _bounds(axis: Axis) -> list[Figure]:
    """The bounds of the bands that lie on a vertical axis, as lines in the colour of the band above."""
    ends = {"type": "line", "layer": "between", "xref": "paper", "x0": 0, "x1": 1}
    return [
        ends | {"y0": bound, "y1": bound, "line": {"color": f"@{above}", "width": 1.5, "dash": "dash"}}
        for (_, bound, _), (above, _, _) in pairwise(BANDS)
        if axis.low < math.log10(bound) < axis.high
    ]


def _bin_edges(axis: Axis) -> list[float]:
    first, last = math.floor(axis.low * _BINS_PER_DECADE), math.ceil(axis.high * _BINS_PER_DECADE)
    edges = [10 ** (step / _BINS_PER_DECADE) for step in range(first, last + 1)]
    for _, bound, _ in BANDS:
        edges = [bound if abs(edge / bound - 1) < 0.01 else edge for edge in edges] if bound < math.inf else edges
    return edges


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    return [sum(low <= value < high for value in values) for low, high in pairwise(edges)]


def _bars(band: str, bins: Sequence[tuple[float, float, int]]) -> Figure:
    return {
        "type": "bar",
        "name": f"{band}: {sum(count for _, _, count in bins):,}",
        "x": [(math.log10(low) + math.log10(high)) / 2 for low, high, _ in bins],
        "y": [count for _, _, count in bins],
        "width": [0.9 * (math.log10(high) - math.log10(low)) for low, high, _ in bins],
        "marker": {"color": f"@{band}"},
        "customdata": [[percent(low), percent(high)] for low, high, _ in bins],
        "hovertemplate": "%{customdata[0]} to %{customdata[1]}: %{y} modules<extra></extra>",
    }


def _linear_in_log(axis: Figure) -> Figure:
    """The same axis for values that are logarithms already: bars have a width in its units."""
    return axis | {"type": "linear", "tickvals": [math.log10(tick) for tick in axis["tickvals"]]}
