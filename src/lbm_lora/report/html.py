"""A report as one HTML page that needs nothing else: no network, no second file, no server.

Plotly's script stands in the page once, images are data URIs, and a content security policy forbids the page to
load anything. Names and notes come from files of others: the template escapes all of them.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

from lbm_lora.errors import ImageError
from lbm_lora.factorize import rank_bound
from lbm_lora.report import wording
from lbm_lora.report.charts import output_figures, weight_figures
from lbm_lora.report.digest import block_order, error_named, kind_of, ledger_entries, network_order, rank_summary
from lbm_lora.report.document import Provenance, Report
from lbm_lora.report.outputs import has_masks, worst_first
from lbm_lora.report.values import BANDS, band_of
from lbm_lora.report.weights import TensorResult, WeightReport

IMAGES_NBYTES = 12 * 2**20
"""Of the images in one page, together; those beyond it are named and left out."""

_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
_FILTERS = ("percent", "share", "decibel", "similarity", "distance", "megabytes", "plural", "printable")


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """An image of the page.

    Attributes:
        uri: the bytes as a data URI; empty where the image was left out for its bytes.
    """

    caption: str
    uri: str


def render_html(
    report: Report, *, images: Mapping[str, bytes] | None = None, provenance: Provenance | None = None
) -> str:
    """The page as text; the same report gives the same bytes.

    Args:
        images: caption -> bytes of a PNG, JPEG or WebP file, shown in the outputs section.

    Raises:
        ImageError: the bytes of an image are of none of these formats.
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
    weights, outputs = report.weights, report.outputs
    extremes = [("best", weights.best), ("worst", weights.worst)]
    return environment.get_template("report.html").render(
        report=report,
        weights=weights,
        comparisons=worst_first(outputs) if outputs else (),
        masked=outputs is not None and has_masks(outputs),
        bands=BANDS,
        gauge=gauge_position(weights.relative_error),
        verdict=next(meaning for name, _, meaning in BANDS if name == weights.band),
        error_meaning=wording.error_meaning(weights.relative_error),
        noise_meaning=wording.noise_meaning(weights.relative_error, weights.noise_floor),
        ledger=ledger_entries(weights),
        ranks=rank_summary(weights),
        extremes=[(label, name, error_named(weights, name)) for label, name in extremes if name],
        blocks=_blocks(weights),
        band_of=band_of,
        infinity=math.inf,
        rows=[_cells(row) for row in network_order(weights.rows)],
        figures=weight_figures(weights) | (output_figures(outputs) if outputs else {}),
        images=_embedded(images or {}),
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
            inside = (error - low) / (bound - low) if bound < math.inf else 1 - low / error
            return 100 * (index + inside) / len(BANDS)
        low = bound
    return 100.0


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
    return {"row": row, "kind": kind_of(row), "shape": wording.dimensions(row.shape), "bound": bound}


def _finite(share: float) -> float:
    """A share that can be drawn: where an error is infinite, shares of it are no numbers."""
    return share if 0 <= share <= 1 else 0.0


def _embedded(images: Mapping[str, bytes]) -> list[EmbeddedImage]:
    shown: list[EmbeddedImage] = []
    left = IMAGES_NBYTES
    for caption, data in images.items():
        mime = next((mime for magic, mime in _MAGIC.items() if data.startswith(magic)), None)
        if mime is None:
            raise ImageError(f"image '{caption}' of the report is no PNG, JPEG or WebP file.")
        fits = len(data) <= left
        left -= len(data) if fits else 0
        uri = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}" if fits else ""
        shown.append(EmbeddedImage(caption=caption, uri=uri))
    return shown


def _asset(name: str) -> str:
    return (files("lbm_lora.report") / "templates" / name).read_text(encoding="utf-8")
