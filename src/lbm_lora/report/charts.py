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
from typing import Any, NamedTuple

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

_AXIS: Figure = {"gridcolor": "@grid", "linecolor": "@grid", "zeroline": False, "automargin": True, "fixedrange": True}
_LAYOUT: Figure = {
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "@muted"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 20, "r": 20, "t": 12, "b": 20},
    "hovermode": "closest",
    "dragmode": False,
    "showlegend": True,
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "@ink"}},
    "hoverlabel": {"bgcolor": "@card", "bordercolor": "@line", "align": "left", "font": {"color": "@ink", "size": 12}},
}


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


def _figure(data: Sequence[Figure], x: Figure, y: Figure, **layout: Any) -> Figure:
    return {"data": data, "layout": _LAYOUT | {"xaxis": _AXIS | x, "yaxis": _AXIS | y} | layout}


def _title(text: str) -> Figure:
    return {"title": {"text": text, "standoff": 10, "font": {"size": 12}}}


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis of shares: from 10^low to 10^high."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float], *, reach: bool = False) -> "Axis":
        """An axis with some air around the values; with `reach`, up to the next bound of a band."""
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
        steps = (1.0, 2.0, 5.0) if span < 2 else (1.0, 5.0) if span < 3 else (1.0,)
        return self.marked(title, steps, _percent_tick, _BOUNDS if bounds else ())

    def marked(
        self, title: str, steps: Sequence[float], text: Callable[[float], str], more: Sequence[float] = ()
    ) -> Figure:
        """Plotly's settings, with ticks at multiples of powers of ten and at some more values."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        every = {round(step * 10.0**decade, 12) for decade in decades for step in steps} | set(more)
        ticks = sorted(tick for tick in every if tick > 0 and self.low <= math.log10(tick) <= self.high)
        axis = {"type": "log", "range": [self.low, self.high], "tickvals": ticks, "ticktext": list(map(text, ticks))}
        return axis | _title(title)


def _percent_tick(tick: float) -> str:
    return f"{100 * tick:,.0f} %" if tick >= 10 else f"{100 * tick:.3g} %"


def _decibels(title: str, values: Sequence[float], *, labels: float = 0.0) -> tuple[Figure, float]:
    """An axis of PSNRs with room for labels, as a share of it, and where infinite ones stand on it."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    air = max(1.0, 0.06 * (max(finite) - min(finite)))
    low, high = min(finite) - air, max(finite) + (3 * air if math.inf in values else air)
    room = labels * (high - low)
    return _title(title) | {"range": [low - room, high + room]}, max(finite) + 2 * air


class _Point(NamedTuple):
    """What the pointer shows there, and the name of its tensor, which a click finds in the table."""

    x: float
    y: float
    hover: str
    symbol: str = "circle"
    name: str = ""


def _trace(name: str, points: Sequence[_Point], color: str, *, size: int = 7, opacity: float = 1.0) -> Figure:
    symbols = [point.symbol for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "x": [point.x for point in points],
        "y": [float(f"{point.y:.5g}") for point in points],
        "customdata": [[point.name, point.hover] for point in points],
        "hovertemplate": "%{customdata[1]}<extra></extra>",
        "marker": {"color": color, "size": size, "opacity": opacity, "symbol": symbols},
    }


def error_by_module(report: WeightReport) -> Figure:
    """The relative error of each tensor whose delta is stored or left out, in the order of the network."""
    rows = [row for row in network_order(report.rows) if row.status != Status.UNCHANGED]
    axis = Axis.over((row.relative_error for row in rows), reach=True)
    places = {row.name: float(index) for index, row in enumerate(rows)}
    starts = [i for i, row in enumerate(rows) if i == 0 or block_of(row.name) != block_of(rows[i - 1].name)]
    named = [(a, b) for a, b in pairwise([*starts, len(rows)]) if b - a >= _LEAST_LABEL * len(rows)]
    edges = [
        _line("@line", x0=start - 0.5, x1=start - 0.5, yref="paper", y0=0, y1=1, layer="below") for start in starts[1:]
    ]
    bounds = [  # of the bands, in the colour of the one above
        _line(f"@{above}", 1.5, "dash", xref="paper", x0=0, x1=1, y0=bound, y1=bound, layer="between")
        for (_, bound, _), (above, _, _) in pairwise(BANDS)
        if axis.low < math.log10(bound) < axis.high
    ]
    blocks = {
        "range": [-0.01 * len(rows) - 1, 1.01 * len(rows)],
        "tickvals": [(start + end - 1) / 2 for start, end in named],
        "ticktext": [_escaped(block_of(rows[start].name)) for start, _ in named],
        "showgrid": False,
    }
    data = _of_tensors(rows, lambda row: places[row.name], axis)
    return _figure(data, blocks, axis.layout("relative error", bounds=True), shapes=[*edges, *bounds])


def error_by_noise(report: WeightReport) -> Figure:
    """Error against noise floor, of the stored deltas."""
    rows = [row for row in report.rows if _has_noise(row)]
    noise, error = Axis.over(row.noise_floor for row in rows), Axis.over(row.relative_error for row in rows)
    low, high = 10 ** max(noise.low, error.low), 10 ** min(noise.high, error.high)
    equal = [_line("@muted", 1, "dot", x0=low, y0=low, x1=high, y1=high, layer="below")] if low < high else []
    data = _of_tensors(rows, lambda row: row.noise_floor, error)
    return _figure(data, noise.layout("noise floor"), error.layout("relative error"), shapes=equal)


def error_by_rank(report: WeightReport) -> Figure:
    """Error against the stored rank as a share of the highest that each matrix allows."""
    ranks = _rank_shares(report)
    rows = [row for row in report.rows if row.name in ranks]
    along, error = Axis.over(ranks.values()), Axis.over(row.relative_error for row in rows)
    data = _of_tensors(rows, lambda row: ranks[row.name], error)
    return _figure(data, along.layout("rank / full rank"), error.layout("relative error"))


def _line(color: str, width: float = 1, dash: str = "solid", **ends: Any) -> Figure:
    return {"type": "line", "line": {"color": color, "width": width, "dash": dash}, **ends}


def _has_noise(row: TensorResult) -> bool:
    return row.status in (Status.LORA, Status.DENSE) and 0 < row.noise_floor < math.inf


def _rank_shares(report: WeightReport) -> dict[str, float]:
    return {row.name: (row.rank or 0) / rank_bound(row.shape) for row in lora_rows(report) if row.rank and row.shape}


def _of_tensors(rows: Sequence[TensorResult], x: Callable[[TensorResult], float], error: Axis) -> list[Figure]:
    """A point for each tensor at its relative error: one trace for each kind that occurs."""
    points: dict[str, list[_Point]] = {"linear": [], "conv": [], "dense": [], "left out": []}
    for row in rows:
        found = row.relative_error
        symbol = "circle" if 0 < found < math.inf else "triangle-down" if found == 0 else "triangle-up"
        points[_kind(row)].append(_Point(x(row), error.place(found), _hover(row), symbol, row.name))
    colors = {"left out": "@excluded"}
    return [
        _trace(kind, members, colors.get(kind, f"@{kind}"), size=5, opacity=0.75)
        for kind, members in points.items()
        if members
    ]


def _kind(row: TensorResult) -> str:
    return "left out" if row.status == Status.EXCLUDED else delta_kind(row)


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
    bars = [
        {
            "type": "bar",
            "name": f"{band}: {sum(count for _, _, count in own):,}",
            "x": [(math.log10(low) + math.log10(high)) / 2 for low, high, _ in own],
            "y": [count for _, _, count in own],
            "width": [0.9 * (math.log10(high) - math.log10(low)) for low, high, _ in own],
            "marker": {"color": f"@{band}"},
            "customdata": [[percent(low), percent(high)] for low, high, _ in own],
            "hovertemplate": "%{customdata[0]} to %{customdata[1]}: %{y} modules<extra></extra>",
        }
        for band, own in in_bands.items()
        if any(count for _, _, count in own)
    ]
    x = axis.layout("relative error", bounds=True)
    # bars have a width in the units of their axis, which therefore is one of logarithms
    x |= {"type": "linear", "tickvals": [math.log10(tick) for tick in x["tickvals"]]}
    return _figure(bars, x, _title("modules") | {"rangemode": "tozero"}, barmode="overlay")


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
            worst.append(_Point(e.timestep, axis.place(e.worst_error), found, "circle-open"))
        traces += _curve(_escaped(variant), means, worst, color)
    ticks = sorted(outputs.timesteps)
    along = {"range": [ticks[-1] + 50, ticks[0] - 50], "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return _figure(traces, along | _title("timestep"), axis.layout("denoiser error"))


def psnr_by_image(outputs: OutputComparison) -> Figure:
    """Each image's PSNR, the worst first: of each variant, and at each number of steps where two are compared."""
    images = worst_first(outputs)
    steps_of = outputs.steps if len(images[0].scores) <= 2 else outputs.steps[:1]
    y, top = _decibels("PSNR, dB", [score.psnr for image in images for v in image.scores for score in v.images])
    traces: list[Figure] = []
    for index, (variant, color) in enumerate(_colors(v.variant for v in images[0].scores).items()):
        for number, steps in enumerate(steps_of):
            name = f"{_escaped(variant)}, {plural(steps, 'step')}"
            points: list[_Point] = []
            for place, image in enumerate(images):
                psnr = image.scores[index].images[number].psnr
                hover = f"<b>{_escaped(image.image)}</b><br>{name}: {decibel(psnr)} dB"
                points.append(_psnr(float(place), psnr, hover, top, _SYMBOLS[number % len(_SYMBOLS)]))
            traces.append(_trace(name, points, color))
    return _figure(traces, _title("images, worst first") | {"showticklabels": False, "showgrid": False}, y)


def psnr_by_nbytes(outputs: OutputComparison) -> Figure:
    """PSNR at the fewest steps against the size of the file: one labelled curve for each series of like files.

    Like are files of one method, one precision and one split of ranks; see `LoraFile.series`.
    """
    summary = {entry.variant: entry for entry in outputs.summary if entry.steps == outputs.steps[0]}
    psnrs = [psnr for lora in outputs.loras for e in [summary[lora.variant]] for psnr in (e.mean_psnr, e.worst_psnr)]
    y, top = _decibels(f"PSNR, dB ({plural(outputs.steps[0], 'step')})", psnrs, labels=0.1)
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
            means.append(_psnr(size, entry.mean_psnr, f"{about}<br>mean {decibel(entry.mean_psnr)} dB", top))
            worst.append(_psnr(size, entry.worst_psnr, found, top, "circle-open"))
            labels.append("<br>".join(_told(lora, lora.ranks.partition(",")[0])))
        # curves rise to the right, so these two corners are free; neighbours take different ones
        side = "top left" if len(traces) % 4 == 0 else "bottom right"
        line, rings = _curve(_escaped(series, _SERIES), means, worst, color)
        line |= {"mode": "lines+markers+text", "text": labels, "textposition": side, "cliponaxis": False}
        traces += [line | {"textfont": {"size": 11, "color": color}}, rings]
    logs = [math.log10(lora.nbytes / 1e6) for lora in outputs.loras]
    air = max(0.12, 0.12 * (max(logs) - min(logs)))  # for the labels of the outer points
    sizes = Axis(min(logs) - air, max(logs) + air)
    return _figure(traces, sizes.marked("size of the file, MB", (1.0, 2.0, 5.0), lambda tick: f"{tick:g}"), y)


def _psnr(x: float, psnr: float, hover: str, top: float, symbol: str = "circle") -> _Point:
    return _Point(x, min(psnr, top), hover, "triangle-up" if psnr == math.inf else symbol)


def _told(lora: LoraFile, ranks: str) -> list[str]:
    """The ranks of a file, where they are fixed, and its size."""
    return [part for part in (_escaped(ranks), megabytes(lora.nbytes)) if part]


def _curve(name: str, means: Sequence[_Point], worst: Sequence[_Point], color: str) -> list[Figure]:
    """Mean values joined by a line, and worst values as rings, which share its entry in the legend."""
    line = {"mode": "lines+markers", "line": {"color": color, "width": 2}}
    return [_trace(name, means, color) | line, _trace(name, worst, color) | {"showlegend": False}]


def _colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in the order of the first time that it comes; the first is the base's grey."""
    return {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(dict.fromkeys(names))}


def _escaped(name: str, width: int = _NAME) -> str:
    """A name from a file in Plotly's markup."""
    return escape(shortened(printable(name), width), quote=False)
