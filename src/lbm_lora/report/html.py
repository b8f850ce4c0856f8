"""A report as one HTML page that needs nothing else: no network, no second file, no server.

Plotly's script stands in the page once, pictures are data URIs, and a content security policy forbids the page to
load anything. Names and notes come from files of others: the template escapes all of them.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

from lbm_lora.errors import ImageError
from lbm_lora.factorize import rank_bound
from lbm_lora.report import charts, outputs_charts, wording
from lbm_lora.report.digest import block_order, error_named, kind_of, ledger_entries, network_order, rank_summary
from lbm_lora.report.outputs import OutputComparison, has_masks, worst_first
from lbm_lora.report.provenance import Provenance
from lbm_lora.report.schema import BANDS, Report, TensorResult, WeightReport, band_of

PICTURE_BYTES = 12 * 2**20
"""Pictures in one page, together; those beyond it are named and left out."""

_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
_FILTERS = ("percent", "share", "decibel", "similarity", "distance", "megabytes", "plural", "printable")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the page.

    Attributes:
        uri: the bytes as a data URI; empty where the picture was left out for its size.
    """

    caption: str
    uri: str


def render_html(
    report: Report, *, pictures: Mapping[str, bytes] | None = None, provenance: Provenance | None = None
) -> str:
    """The page as text; the same report gives the same bytes.

    Args:
        pictures: caption -> bytes of a PNG, JPEG or WebP file, shown in the outputs section.

    Raises:
        ImageError: the bytes of a picture are of none of these formats.
    """
    # both are slow to import, and only this page needs them
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("lbm_lora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    filters = cast(dict[str, Any], environment.filters)
    filters |= {name: getattr(wording, name) for name in _FILTERS}
    filters["breakable"] = lambda name: Markup(".<wbr>").join(wording.printable(name).split("."))
    weights = report.weights
    return environment.get_template("report.html").render(
        report=report,
        weights=weights,
        images=worst_first(report.outputs) if report.outputs else (),
        masked=report.outputs is not None and has_masks(report.outputs),
        bands=BANDS,
        gauge=gauge_position(weights.relative_error),
        verdict=next(meaning for name, _, meaning in BANDS if name == weights.band),
        error_meaning=wording.error_meaning(weights.relative_error),
        noise_meaning=wording.noise_meaning(weights.relative_error, weights.noise_floor),
        ledger=ledger_entries(weights),
        ranks=rank_summary(weights),
        extremes=[(label, name, error_named(weights, name)) for label, name in _extremes(weights) if name],
        blocks=_blocks(weights),
        band_of=band_of,
        rows=[_cells(row) for row in network_order(weights.rows)],
        figures=_figures(weights) | _output_figures(report.outputs),
        pictures=_pictures(pictures or {}),
        provenance=provenance or Provenance(),
        style=Markup(_asset("report.css")),
        script=Markup(_asset("report.js")),
        plotly=Markup(get_plotlyjs()),
    )


def gauge_position(error: float) -> float:
    """Where an error stands on a scale on which every band is equally long, in percent from its left end."""
    low = 0.0
    for index, (_, bound, _) in enumerate(BANDS):
        if error < bound:
            inside = (error - low) / (bound - low) if bound < float("inf") else 1 - low / error
            return 100 * (index + inside) / len(BANDS)
        low = bound
    return 100.0


def _extremes(weights: WeightReport) -> tuple[tuple[str, str], ...]:
    return ("best", weights.best), ("worst", weights.worst)


def _figures(weights: WeightReport) -> dict[str, charts.Figure]:
    """Id of the element -> figure; those that there is nothing to draw for are left out."""
    if not weights.rows:
        return {}
    figures = {
        "plot-modules": charts.error_by_module(weights),
        "plot-histogram": charts.error_histogram(weights) if weights.matched else None,
        "plot-noise": charts.error_by_noise(weights),
        "plot-rank": charts.error_by_rank(weights),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _output_figures(outputs: OutputComparison | None) -> dict[str, charts.Figure]:
    """The same of the outputs."""
    if outputs is None:
        return {}
    figures = {
        "outputs-sizes": outputs_charts.psnr_by_size(outputs),
        "outputs-timesteps": outputs_charts.error_by_timestep(outputs),
        "outputs-images": outputs_charts.psnr_by_image(outputs),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _blocks(weights: WeightReport) -> list[dict[str, Any]]:
    """The blocks in the order of the network, with their bars as percentages of the longest one."""
    by_name = {block.block: block for block in weights.blocks}
    longest = max((max(b.delta_share, _finite(b.error_share)) for b in weights.blocks), default=0.0) or 1.0
    return [
        {
            "block": block,
            "delta_bar": 100 * block.delta_share / longest,
            "error_bar": 100 * _finite(block.error_share) / longest,
        }
        for block in (by_name[name] for name in block_order(weights.rows) if name in by_name)
    ]


def _cells(row: TensorResult) -> dict[str, Any]:
    """A line of the table of all tensors."""
    bound = rank_bound(row.shape) if row.rank is not None and row.shape else 0
    return {"row": row, "kind": kind_of(row), "size": wording.size(row.shape), "bound": bound}


def _finite(share: float) -> float:
    """A share that can be drawn: where an error is infinite, shares of it are no numbers."""
    return share if 0 <= share <= 1 else 0.0


def _pictures(pictures: Mapping[str, bytes]) -> list[Picture]:
    shown: list[Picture] = []
    left = PICTURE_BYTES
    for caption, data in pictures.items():
        mime = next((mime for magic, mime in _MAGIC.items() if data.startswith(magic)), None)
        if mime is None:
            raise ImageError(f"picture '{caption}' of the report is no PNG, JPEG or WebP file.")
        fits = len(data) <= left
        left -= len(data) if fits else 0
        uri = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}" if fits else ""
        shown.append(Picture(caption=caption, uri=uri))
    return shown


def _asset(name: str) -> str:
    return (files("lbm_lora.report") / "templates" / name).read_text(encoding="utf-8")
