"""The plots of the page as values of Plotly, of three kinds: points for tensors, bars, and curves of several variants.

Colours are names of CSS variables (`@linear`): the page's script puts in those of the reader's light or dark scheme.
Errors and noise floors span decades and have logarithmic axes, on which 0 has no place; PSNRs may be infinite. What
cannot be drawn stands near an edge, as a triangle; what the pointer shows is always the true value. Text in Plotly's
own markup is escaped, since names come from files.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from lbm_lora.adapter import Status
from lbm_lora.factorize import rank_bound
from lbm_lora.fidelity.outputs import LoraFile, OutputComparison, worst_first
from lbm_lora.fidelity.weights import (
    BANDS,
    TensorResult,
    WeightReport,
    band_of,
    block_of,
    delta_kind,
    lora_rows,
    network_order,
)
from lbm_lora.report.wording import decibel, dimensions, megabytes, percent, plural, printable, shortened

Figure = dict[str, Any]
"""A part of a Plotly figure, as plain values."""

_BINS_PER_DECADE = 10  # whose edges come within 0.3 % of the bands' bounds, and are moved onto them
_LEAST_LABEL = 0.05  # share of the axis that a block must take to be named on it
_BOUNDS = [bound for _, bound, _ in BANDS if bound < math.inf]
_COLORS = ("@muted", "@linear", "@conv", "@dense", "@excluded", "@good", "@noise")
_SYMBOLS = ("circle", "diamond", "square", "cross", "star", "hexagon")
_NAME, _SERIES = 32, 56  # letters of a name and of a legend's entry, at most


def weight_figures(report: WeightReport) -> dict[str, Figure]:
    """Id of the page's element -> figure; those that there is nothing to draw for are left out."""
    if not report.rows:
        return {}
    figures = {"plot-modules": error_by_module(report)}
    if report.matched:
        figures["plot-histogram"] = error_histogram(report)
    if any(map(_has_noise, report.rows)):
        figures["plot-noise"] = error_by_noise(report)
    if len(set(_rank_shares(report).values())) > 1:
        figures["plot-rank"] = error_by_rank(report)
    return figures


def output_figures(outputs: OutputComparison) -> dict[str, Figure]:
    """Likewise for the outputs: mean values are joined by lines, worst values are rings."""
    return {
        **({"outputs-bytes": psnr_by_nbytes(outputs)} if len(outputs.loras) > 1 else {}),
        "outputs-timesteps": error_by_timestep(outputs),
        **({"outputs-images": psnr_by_image(outputs)} if len(outputs.images) > 1 else {}),
    }


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis of shares: from 10^low to 10^high."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float], *, reach: bool = False) -> "Axis":
        """An axis with some air around the values that are positive and finite.

        Args:
            reach: go up to the next bound of a band, so that the reader sees how far it is.
        """
        logs = [math.log10(value) for value in values if 0 < value < math.inf] or [-2.0, 0.0]
        low, high = min(logs), max(logs)
        if reach:
            high = max(high, next((log for log in map(math.log10, _BOUNDS) if log >= high), high))
        air = max(0.12, 0.06 * (high - low))
        return cls(low - air, high + air)

    def place(self, value: float) -> float:
        """Where a value is drawn: at an edge where it is 0, infinite or no number."""
        if 0 < value < math.inf:
            return value
        inset = 0.035 * (self.high - self.low)
        return 10 ** (self.low + inset if value == 0 else self.high - inset)

    def layout(self, title: str, *, bounds: bool = False) -> Figure:
        """Plotly's settings; with `bounds`, the bounds of the bands are among the ticks."""
        span = self.high - self.low
        ticks = self.ticks((1.0, 2.0, 5.0) if span < 2 else (1.0, 5.0) if span < 3 else (1.0,), bounds=bounds)
        return self._logarithmic(ticks, [_percent_tick(tick) for tick in ticks], title)

    def megabytes(self, title: str) -> Figure:
        """Plotly's settings for sizes."""
        ticks = self.ticks((1.0, 2.0, 5.0))
        return self._logarithmic(ticks, [f"{tick:g}" for tick in ticks], title)

    def ticks(self, steps: Sequence[float], *, bounds: bool = False) -> list[float]:
        """Return the multiples of powers of ten on the axis."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        ticks = {round(step * 10.0**decade, 12) for decade in decades for step in steps}
        ticks |= set(_BOUNDS) if bounds else set()
        return sorted(tick for tick in ticks if tick > 0 and self.low <= math.log10(tick) <= self.high)

    def _logarithmic(self, ticks: Sequence[float], texts: Sequence[str], title: str) -> Figure:
        return {
            "type": "log",
            "range": [self.low, self.high],
            "tickvals": ticks,
            "ticktext": texts,
            "title": {"text": title},
        }


def _percent_tick(tick: float) -> str:
    return f"{100 * tick:,.0f} %" if tick >= 10 else f"{100 * tick:.3g} %"


@dataclass(frozen=True)
class Decibels:
    """An axis of PSNRs: its ends, and where infinite ones stand (infinity where there are none)."""

    low: float
    high: float
    top: float

    @classmethod
    def over(cls, values: Sequence[float], *, labels: float = 0.0) -> "Decibels":
        """An axis with some air around the values that are finite.

        Args:
            labels: room for the labels of the highest and the lowest points, as a share of the axis.
        """
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        air = max(1.0, 0.06 * (max(finite) - min(finite)))
        low, high, top = min(finite) - air, max(finite) + air, math.inf
        if math.inf in values:
            high, top = high + 2 * air, high + air
        room = labels * (high - low)
        return cls(low - room, high + room, top)

    def layout(self, title: str) -> Figure:
        """Plotly's settings."""
        return {"title": {"text": title}, "range": [self.low, self.high]}


def error_by_module(report: WeightReport) -> Figure:
    """The relative error of each tensor whose delta is stored or left out, in the order of the network."""
    rows = [row for row in network_order(report.rows) if row.status != Status.UNCHANGED]
    axis = Axis.over((row.relative_error for row in rows), reach=True)
    places = {row.name: float(index) for index, row in enumerate(rows)}
    starts = [i for i, row in enumerate(rows) if i == 0 or block_of(row.name) != block_of(rows[i - 1].name)]
    named = [(a, b) for a, b in pairwise([*starts, len(rows)]) if b - a >= _LEAST_LABEL * len(rows)]
    return {
        "data": _points(rows, lambda row: places[row.name], lambda row: axis.place(row.relative_error)),
        "layout": {
            "xaxis": {
                "range": [-0.01 * len(rows) - 1, 1.01 * len(rows)],
                "tickvals": [(start + end - 1) / 2 for start, end in named],
                "ticktext": [_escaped(block_of(rows[start].name)) for start, _ in named],
                "showgrid": False,
            },
            "yaxis": axis.layout("relative error", bounds=True),
            "shapes": [_edge(start - 0.5) for start in starts[1:]] + _bound_lines(axis),
        },
    }


def error_by_noise(report: WeightReport) -> Figure:
    """Error against noise floor, of the stored deltas."""
    rows = [row for row in report.rows if _has_noise(row)]
    noise = Axis.over(row.noise_floor for row in rows)
    error = Axis.over(row.relative_error for row in rows)
    ends = [10 ** max(noise.low, error.low), 10 ** min(noise.high, error.high)]
    line = {"type": "line", "x0": ends[0], "y0": ends[0], "x1": ends[1], "y1": ends[1], "layer": "below"}
    line["line"] = {"color": "@muted", "width": 1, "dash": "dot"}
    return {
        "data": _points(rows, lambda row: row.noise_floor, lambda row: error.place(row.relative_error)),
        "layout": {
            "xaxis": noise.layout("noise floor"),
            "yaxis": error.layout("relative error"),
            "shapes": [line] if ends[0] < ends[1] else [],
        },
    }


def error_by_rank(report: WeightReport) -> Figure:
    """Error against the stored rank as a share of the highest that each matrix allows."""
    ranks = _rank_shares(report)
    rows = [row for row in report.rows if row.name in ranks]
    error = Axis.over(row.relative_error for row in rows)
    return {
        "data": _points(rows, lambda row: ranks[row.name], lambda row: error.place(row.relative_error)),
        "layout": {
            "xaxis": Axis.over(ranks.values()).layout("rank / full rank"),
            "yaxis": error.layout("relative error"),
        },
    }


def _has_noise(row: TensorResult) -> bool:
    return row.status in (Status.LORA, Status.DENSE) and 0 < row.noise_floor < math.inf


def _rank_shares(report: WeightReport) -> dict[str, float]:
    return {row.name: (row.rank or 0) / rank_bound(row.shape) for row in lora_rows(report) if row.rank and row.shape}


def _points(
    rows: Sequence[TensorResult], x: Callable[[TensorResult], float], y: Callable[[TensorResult], float]
) -> list[Figure]:
    """A point for each tensor: one trace for each kind that occurs."""
    traces: list[Figure] = []
    for kind in ("linear", "conv", "dense", "left out"):
        members = [row for row in rows if _kind(row) == kind]
        if members:
            symbols = [_symbol(row.relative_error) for row in members]
            marker = {"color": "@excluded" if kind == "left out" else f"@{kind}", "size": 5, "opacity": 0.75}
            marker |= {"line": {"width": 0}} | ({"symbol": symbols} if set(symbols) != {"circle"} else {})
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": kind,
                    "x": [x(row) for row in members],
                    "y": [float(f"{y(row):.5g}") for row in members],
                    "customdata": [[row.name, _hover(row)] for row in members],
                    "hovertemplate": "%{customdata[1]}<extra></extra>",
                    "marker": marker,
                }
            )
    return traces


def _kind(row: TensorResult) -> str:
    return "left out" if row.status == Status.EXCLUDED else delta_kind(row)


def _symbol(error: float) -> str:
    return "circle" if 0 < error < math.inf else "triangle-down" if error == 0 else "triangle-up"


def _hover(row: TensorResult) -> str:
    rank = f", rank {row.rank} of {rank_bound(row.shape)}" if row.rank is not None and row.shape else ""
    lines = [""]  # the dotted name in pieces that fit a phone
    for part in printable(row.name).replace(".", ".\n").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) > 40:
            lines.append("")
        lines[-1] += part
    return "<br>".join(
        [
            f"<b>{'<br>'.join(escape(line, quote=False) for line in lines)}</b>",
            f"{_kind(row)} {dimensions(row.shape)}{rank}",
            f"relative error {percent(row.relative_error)}, mean {percent(row.relative_mean_error)}",
            f"noise floor {percent(row.noise_floor)}",
        ]
    )


def _edge(place: float) -> Figure:
    line = {"color": "@line", "width": 1}
    return {"type": "line", "x0": place, "x1": place, "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line": line}


def _bound_lines(axis: Axis) -> list[Figure]:
    """The bounds of the bands that lie on a vertical axis, as lines in the colour of the band above."""
    ends = {"type": "line", "layer": "between", "xref": "paper", "x0": 0, "x1": 1}
    return [
        ends | {"y0": bound, "y1": bound, "line": {"color": f"@{above}", "width": 1.5, "dash": "dash"}}
        for (_, bound, _), (above, _, _) in pairwise(BANDS)
        if axis.low < math.log10(bound) < axis.high
    ]


def error_histogram(report: WeightReport) -> Figure:
    """How many lora modules have which relative error, coloured by the documented bands."""
    values = [row.relative_error for row in lora_rows(report)]
    axis = Axis.over(values)
    first, last = math.floor(axis.low * _BINS_PER_DECADE), math.ceil(axis.high * _BINS_PER_DECADE)
    edges = [10 ** (step / _BINS_PER_DECADE) for step in range(first, last + 1)]
    edges = [next((bound for bound in _BOUNDS if abs(edge / bound - 1) < 0.01), edge) for edge in edges]
    placed = [axis.place(value) for value in values]
    bins = [(low, high, sum(low <= value < high for value in placed)) for low, high in pairwise(edges)]
    in_bands = {name: [one for one in bins if band_of(one[0]) == name] for name, _, _ in BANDS}
    x = axis.layout("relative error", bounds=True)
    return {
        "data": [_bars(name, own) for name, own in in_bands.items() if any(count for _, _, count in own)],
        "layout": {
            "barmode": "overlay",
            # bars have a width in the units of their axis, which therefore is one of logarithms
            "xaxis": x | {"type": "linear", "tickvals": [math.log10(tick) for tick in x["tickvals"]]},
            "yaxis": {"title": {"text": "modules"}, "rangemode": "tozero"},
        },
    }


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


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    hover: str


def error_by_timestep(outputs: OutputComparison) -> Figure:
    """Each variant's denoiser error along the bridge, from the source on."""
    axis = Axis.over(error for e in outputs.denoiser for error in (e.mean_error, e.worst_error))
    traces: list[Figure] = []
    for variant, color in _colors(entry.variant for entry in outputs.denoiser).items():
        means: list[_Point] = []
        worst: list[_Point] = []
        for e in (entry for entry in outputs.denoiser if entry.variant == variant):
            place = f"<b>{_escaped(variant)}</b>, timestep {e.timestep:g}<br>"
            found = f"{place}worst {percent(e.worst_error)}, {_escaped(e.worst_image)}"
            means.append(_Point(e.timestep, axis.place(e.mean_error), f"{place}mean {percent(e.mean_error)}"))
            worst.append(_Point(e.timestep, axis.place(e.worst_error), found))
        traces += _curve(_escaped(variant), means, worst, color)
    ticks = sorted(outputs.timesteps)
    along = {"range": [ticks[-1] + 50, ticks[0] - 50], "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {
        "data": traces,
        "layout": {"xaxis": along | {"title": {"text": "timestep"}}, "yaxis": axis.layout("denoiser error")},
    }


def psnr_by_image(outputs: OutputComparison) -> Figure:
    """Each image's PSNR, the worst first: of each variant, and at each number of steps where two are compared."""
    images = worst_first(outputs)
    steps_of = outputs.steps if len(images[0].scores) <= 2 else outputs.steps[:1]
    axis = Decibels.over([score.psnr for image in images for v in image.scores for score in v.images])
    traces: list[Figure] = []
    for index, (variant, color) in enumerate(_colors(v.variant for v in images[0].scores).items()):
        for number, steps in enumerate(steps_of):
            name = f"{_escaped(variant)}, {plural(steps, 'step')}"
            psnrs = [image.scores[index].images[number].psnr for image in images]
            points = [
                _Point(float(place), psnr, f"<b>{_escaped(image.image)}</b><br>{name}: {decibel(psnr)} dB")
                for place, (image, psnr) in enumerate(zip(images, psnrs, strict=True))
            ]
            traces.append(_marks(name, points, color, _SYMBOLS[number % len(_SYMBOLS)], top=axis.top))
    return {
        "data": traces,
        "layout": {
            "xaxis": {"showticklabels": False, "showgrid": False, "title": {"text": "images, worst first"}},
            "yaxis": axis.layout("PSNR, dB"),
        },
    }


def psnr_by_nbytes(outputs: OutputComparison) -> Figure:
    """PSNR at the fewest steps against the size of the file: one labelled curve for each series of like files.

    Like are files of one method, one precision and one split of ranks; see `LoraFile.series`.
    """
    summary = {entry.variant: entry for entry in outputs.summary if entry.steps == outputs.steps[0]}
    entries = [summary[lora.variant] for lora in outputs.loras]
    axis = Decibels.over([psnr for e in entries for psnr in (e.mean_psnr, e.worst_psnr)], labels=0.1)
    traces: list[Figure] = []
    # "" takes the grey of the base, which has no file
    for series, color in list(_colors(["", *(lora.series for lora in outputs.loras)]).items())[1:]:
        means: list[_Point] = []
        worst: list[_Point] = []
        labels: list[str] = []
        for lora in sorted((lora for lora in outputs.loras if lora.series == series), key=lambda lora: lora.nbytes):
            entry, size = summary[lora.variant], lora.nbytes / 1e6
            about = f"<b>{_escaped(lora.file)}</b>, {', '.join(_told(lora, lora.ranks))}"
            found = f"{about}<br>worst {decibel(entry.worst_psnr)} dB, {_escaped(entry.worst_image)}"
            means.append(_Point(size, entry.mean_psnr, f"{about}<br>mean {decibel(entry.mean_psnr)} dB"))
            worst.append(_Point(size, entry.worst_psnr, found))
            labels.append("<br>".join(_told(lora, lora.ranks.partition(",")[0])))
        # curves rise to the right, so these two corners are free; neighbours take different ones
        side = "top left" if len(traces) % 4 == 0 else "bottom right"
        line, rings = _curve(_escaped(series, _SERIES), means, worst, color, top=axis.top)
        line |= {"mode": "lines+markers+text", "text": labels, "textposition": side, "cliponaxis": False}
        traces += [line | {"textfont": {"size": 11, "color": color}}, rings]
    logs = [math.log10(lora.nbytes / 1e6) for lora in outputs.loras]
    air = max(0.12, 0.12 * (max(logs) - min(logs)))  # for the labels of the outer points
    sizes = Axis(min(logs) - air, max(logs) + air)
    return {
        "data": traces,
        "layout": {
            "xaxis": sizes.megabytes("size of the file, MB"),
            "yaxis": axis.layout(f"PSNR, dB ({plural(outputs.steps[0], 'step')})"),
        },
    }


def _told(lora: LoraFile, ranks: str) -> list[str]:
    """Return the ranks of a file, where they are fixed, and its size."""
    return [part for part in (_escaped(ranks), megabytes(lora.nbytes)) if part]


def _curve(
    name: str, means: Sequence[_Point], worst: Sequence[_Point], color: str, *, top: float = math.inf
) -> list[Figure]:
    """Mean values joined by a line, and worst values as rings, which share its entry in the legend."""
    line = _marks(name, means, color, "circle", top=top)
    rings = _marks(name, worst, color, "circle-open", top=top)
    return [line | {"mode": "lines+markers", "line": {"color": color, "width": 2}}, rings | {"showlegend": False}]


def _marks(name: str, points: Sequence[_Point], color: str, symbol: str, *, top: float) -> Figure:
    """A trace of points, whose values stand at `top` if they are infinite."""
    symbols = ["triangle-up" if point.y >= top else symbol for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "x": [point.x for point in points],
        "y": [float(f"{min(point.y, top):.5g}") for point in points],
        "customdata": [[point.hover] for point in points],
        "hovertemplate": "%{customdata[0]}<extra></extra>",
        "marker": {"color": color, "size": 7, "symbol": symbols if len(set(symbols)) > 1 else symbols[0]},
    }


def _colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in the order of the first time that it comes; the first is the base's grey."""
    return {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(dict.fromkeys(names))}


def _escaped(name: str, width: int = _NAME) -> str:
    """A name from a file in Plotly's markup."""
    return escape(shortened(printable(name), width), quote=False)
