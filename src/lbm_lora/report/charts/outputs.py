"""The plots of the outputs part of a report, as Plotly figures of plain values; see `weights` for their colours.

Mean values are joined by lines, worst values are rings, which share the entry of the legend. Infinite PSNRs stand at
the upper edge as triangles.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from lbm_lora.report.charts.axes import Axis, Decibels, Figure
from lbm_lora.report.outputs import LoraFile, OutputComparison, worst_first
from lbm_lora.report.wording import decibel, megabytes, percent, plural, printable, shortened

_COLORS = ("@muted", "@linear", "@conv", "@dense", "@excluded", "@good", "@noise")
_SYMBOLS = ("circle", "diamond", "square", "cross", "star", "hexagon")
_NAME = 32  # letters, at most
_SERIES = 56  # likewise, of a legend's entry

Points = Sequence[tuple[float, float, str]]
"""x, y, and what the pointer shows."""


def output_figures(outputs: OutputComparison) -> dict[str, Figure]:
    """Id of the page's element -> figure; those that there is nothing to draw for are left out."""
    figures = {
        "outputs-bytes": psnr_by_nbytes(outputs),
        "outputs-timesteps": error_by_timestep(outputs),
        "outputs-images": psnr_by_image(outputs),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def error_by_timestep(outputs: OutputComparison) -> Figure:
    """Each variant's denoiser error along the bridge, from the source on."""
    axis = Axis.over([error for e in outputs.denoiser for error in (e.mean_error, e.worst_error)])
    traces: list[Figure] = []
    for variant, color in _colors([entry.variant for entry in outputs.denoiser]).items():
        name = _name(variant)
        means: list[tuple[float, float, str]] = []
        worst: list[tuple[float, float, str]] = []
        for entry in outputs.denoiser:
            if entry.variant == variant:
                mean, most = entry.mean_error, entry.worst_error
                place = f"<b>{name}</b>, timestep {entry.timestep:g}<br>"
                means.append((entry.timestep, axis.place(mean), f"{place}mean {percent(mean)}"))
                image = _name(entry.worst_image)
                worst.append((entry.timestep, axis.place(most), f"{place}worst {percent(most)}, {image}"))
        traces += [_line(name, means, color), _rings(name, worst, color)]
    ticks = sorted(outputs.timesteps)
    along = {"range": [ticks[-1] + 50, ticks[0] - 50], "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {
        "data": traces,
        "layout": {"xaxis": along | {"title": {"text": "timestep"}}, "yaxis": axis.layout("denoiser error")},
    }


def psnr_by_image(outputs: OutputComparison) -> Figure | None:
    """Each image's PSNR, the worst first: of each variant, and at each number of steps where two are compared.

    None for a single image.
    """
    images = worst_first(outputs)
    if len(images) < 2:
        return None
    shown = outputs.steps if len(images[0].scores) <= 2 else outputs.steps[:1]
    axis = Decibels.over([score.psnr for image in images for v in image.scores for score in v.images])
    traces: list[Figure] = []
    for index, (variant, color) in enumerate(_colors([v.variant for v in images[0].scores]).items()):
        for number, steps in enumerate(shown):
            scores = [image.scores[index].images[number] for image in images]
            points = [
                (
                    float(place),
                    axis.place(score.psnr),
                    f"<b>{_name(image.image)}</b><br>{_name(variant)}, {plural(steps, 'step')}: "
                    f"{decibel(score.psnr)} dB",
                )
                for place, (image, score) in enumerate(zip(images, scores, strict=True))
            ]
            symbol = _SYMBOLS[number % len(_SYMBOLS)]
            traces.append(_marks(f"{_name(variant)}, {plural(steps, 'step')}", points, color, symbol, top=axis.top))
    return {
        "data": traces,
        "layout": {
            "xaxis": {"showticklabels": False, "showgrid": False, "title": {"text": "images, worst first"}},
            "yaxis": axis.layout("PSNR, dB"),
        },
    }


def psnr_by_nbytes(outputs: OutputComparison) -> Figure | None:
    """PSNR at the fewest steps against the size of the file: one labelled curve for each series of like files.

    Like are files of one method, one precision and one split of ranks; see `LoraFile.series`. None for a single file.
    """
    if len(outputs.loras) < 2:
        return None
    summary = {entry.variant: entry for entry in outputs.summary if entry.steps == outputs.steps[0]}
    shown = [summary[lora.variant] for lora in outputs.loras]
    axis = Decibels.over([psnr for entry in shown for psnr in (entry.mean_psnr, entry.worst_psnr)])
    room = 0.1 * (axis.high - axis.low)  # for the labels of the highest and lowest points
    axis = replace(axis, low=axis.low - room, high=axis.high + room)
    sizes = [lora.nbytes / 1e6 for lora in outputs.loras]
    traces: list[Figure] = []
    # "" takes the grey of the base, which has no file
    for series, color in _colors(["", *(lora.series for lora in outputs.loras)]).items():
        files = sorted((lora for lora in outputs.loras if lora.series == series), key=lambda lora: lora.nbytes)
        means: list[tuple[float, float, str]] = []
        worst: list[tuple[float, float, str]] = []
        for lora in files:
            entry = summary[lora.variant]
            about = f"<b>{_name(lora.file)}</b>, {', '.join(filter(None, (_name(lora.ranks), megabytes(lora.nbytes))))}"
            amount = lora.nbytes / 1e6
            means.append((amount, axis.place(entry.mean_psnr), f"{about}<br>mean {decibel(entry.mean_psnr)} dB"))
            image = f"{decibel(entry.worst_psnr)} dB, {_name(entry.worst_image)}"
            worst.append((amount, axis.place(entry.worst_psnr), f"{about}<br>worst {image}"))
        if files:
            label = _name(series, _SERIES)
            # curves rise to the right, so these two corners are free; neighbours take different ones
            side = "top left" if len(traces) % 4 == 0 else "bottom right"
            line = _line(label, means, color, top=axis.top) | {
                "mode": "lines+markers+text",
                "text": [_point_label(lora) for lora in files],
                "textposition": side,
                "cliponaxis": False,
                "textfont": {"size": 11, "color": color},
            }
            traces += [line, _rings(label, worst, color, top=axis.top)]
    return {
        "data": traces,
        "layout": {
            "xaxis": _sizes(sizes),
            "yaxis": axis.layout(f"PSNR, dB ({plural(outputs.steps[0], 'step')})"),
        },
    }


def _point_label(lora: LoraFile) -> str:
    """What a point is: its rank where it is fixed, and its size."""
    return "<br>".join(filter(None, (_name(lora.ranks.partition(",")[0]), megabytes(lora.nbytes))))


def _sizes(values: Sequence[float]) -> Figure:
    """A logarithmic axis of megabytes, with room for the labels of the outer points."""
    low, high = math.log10(min(values)), math.log10(max(values))
    air = max(0.12, 0.12 * (high - low))
    decades = range(math.floor(low - air), math.ceil(high + air) + 1)
    ticks = sorted(step * 10.0**decade for decade in decades for step in (1, 2, 5))
    shown = [tick for tick in ticks if low - air <= math.log10(tick) <= high + air]
    return {
        "type": "log",
        "range": [low - air, high + air],
        "tickvals": shown,
        "ticktext": [f"{tick:g}" for tick in shown],
        "title": {"text": "size of the file, MB"},
    }


def _line(name: str, points: Points, color: str, *, top: float = math.inf) -> Figure:
    marked = _marks(name, points, color, "circle", top=top)
    return marked | {"mode": "lines+markers", "line": {"color": color, "width": 2}}


def _rings(name: str, points: Points, color: str, *, top: float = math.inf) -> Figure:
    return _marks(name, points, color, "circle-open", top=top) | {"showlegend": False}


def _marks(name: str, points: Points, color: str, symbol: str, *, top: float = math.inf) -> Figure:
    symbols = ["triangle-up" if y >= top else symbol for _, y, _ in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "x": [x for x, _, _ in points],
        "y": [float(f"{y:.5g}") for _, y, _ in points],
        "customdata": [[hover] for _, _, hover in points],
        "hovertemplate": "%{customdata[0]}<extra></extra>",
        "marker": {"color": color, "size": 7, "symbol": symbols if len(set(symbols)) > 1 else symbols[0]},
    }


def _colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in the order of the first time that it comes; the first is the base's grey."""
    return {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(dict.fromkeys(names))}


def _name(name: str, width: int = _NAME) -> str:
    """A name from a file in Plotly's markup."""
    return escape(shortened(printable(name), width), quote=False)
