"""Write a report as one self-contained HTML page: no network, no second file, no server.

Plotly's script is in the page once, images are data URIs, and a content security policy forbids the page to
load anything. Names and notes come from files of others: the template escapes all of them.
"""

import math
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from lbm_lora.factorize import rank_bound
from lbm_lora.report import wording
from lbm_lora.report.charts import output_figures, weight_figures
from lbm_lora.report.digest import (
    block_order,
    error_named,
    kind_of,
    ledger_entries,
    network_order,
    rank_summary,
    worst_modules,
)
from lbm_lora.report.document import Provenance, Report
from lbm_lora.report.headline import IMAGE_BANDS, decibel_place, image_headline
from lbm_lora.report.images import ImageSet, embedded
from lbm_lora.report.outputs import has_masks, worst_first
from lbm_lora.report.values import BANDS, band_of
from lbm_lora.report.weights import TensorResult, WeightReport

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN_ROWS = 20
"""Lines of a table that are seen at once; the rest is folded."""

SHOWN_SETS = 3
"""Likewise, of the sets of images."""

_FILTERS = ("percent", "share", "decibel", "similarity", "distance", "megabytes", "plural", "printable")


def render_html(report: Report, *, images: Sequence[ImageSet] = (), provenance: Provenance | None = None) -> str:
    """The page as text; the same report gives the same bytes.

    Args:
        images: what the models make of some sources, those that matter most first. Sets beyond `IMAGES_NBYTES` are
            named and left out.

    Raises:
        ImageError: the bytes of an image are not a PNG, JPEG or WebP file.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs  # slow to import, and only this page needs it

    weights, outputs = report.weights, report.outputs
    shown, left_out = embedded(images)
    extremes = [("best", weights.best), ("worst", weights.worst)]
    return (
        environment()
        .get_template("report.html")
        .render(
            report=report,
            weights=weights,
            outputs=outputs,
            headline=image_headline(outputs) if outputs else None,
            image_bands=IMAGE_BANDS,
            decibel_place=decibel_place,
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
            worst=[_cells(row) for row in worst_modules(weights, SHOWN_ROWS)],
            shown_rows=SHOWN_ROWS,
            shown_sets=SHOWN_SETS,
            figures=weight_figures(weights) | (output_figures(outputs) if outputs else {}),
            sets=shown,
            sets_left_out=left_out,
            provenance=provenance or Provenance(),
            style=Markup(asset("report.css")),
            script=Markup(asset("report.js")),
            plotly=Markup(get_plotlyjs()),
        )
    )


def environment() -> "Environment":
    """The templates of this package, with the filters that they use: everything from a file is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow to import, and only pages need it
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("lbm_lora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    filters = cast(dict[str, Any], made.filters)
    filters |= {name: getattr(wording, name) for name in _FILTERS}
    filters["breakable"] = lambda name: Markup(".<wbr>").join(wording.printable(name).split("."))
    filters["setting"] = _setting
    return made


def asset(name: str) -> str:
    """The text of a style or a script next to the templates."""
    return (files("lbm_lora.report") / "templates" / name).read_text(encoding="utf-8")


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


def _setting(value: bool | float | str | None) -> str:
    """A setting as a reader says it."""
    if value is None:
        return "default"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
