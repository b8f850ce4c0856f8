"""Write a report as one self-contained HTML page: no network, no second file, no server.

Plotly's script is in the page once, images are data URIs, and a content security policy forbids the page to
load anything. Names and notes come from files of others: the template escapes all of them.
"""

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from markupsafe import Markup

from lbm_lora.errors import ImageError
from lbm_lora.fidelity.outputs import ImageSet, OutputComparison, worst_first
from lbm_lora.fidelity.weights import (
    BANDS,
    Band,
    blocks_in_order,
    extremes,
    ledger_entries,
    network_order,
    rank_summary,
    worst_modules,
)
from lbm_lora.report import columns, wording
from lbm_lora.report.charts import output_figures, weight_figures
from lbm_lora.report.document import Provenance, Report

if TYPE_CHECKING:
    from jinja2 import Environment

IMAGES_NBYTES = 12 * 2**20
"""Limit for all images in one page; sets beyond it are named and left out."""

_FIRST_ROWS, _FIRST_SETS = 20, 3  # of a table, of the images; the others are folded
_SMALL = 256  # pixels of a longer side: images below it are enlarged by repeating pixels, so that nothing is smoothed
_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
_FILTERS = ("percent", "share", "decibel", "similarity", "distance", "megabytes", "plural", "printable")

IMAGE_BANDS: tuple[tuple[Band, float, str], ...] = (
    ("excellent", 40.0, "no visible difference, even when flipping between the two"),
    ("good", 30.0, "small differences, visible when flipping between the two"),
    ("poor", 20.0, "differences visible side by side"),
    ("noise", -math.inf, "another image"),
)
"""Rules of thumb for the PSNR of an image to the reference's: name, lower bound in dB, visible effect."""


def render_html(report: Report, *, images: Sequence[ImageSet] = (), provenance: Provenance | None = None) -> str:
    """The page as text; the same report gives the same bytes.

    Args:
        images: what the models make of some sources, those that matter most first. Sets beyond `IMAGES_NBYTES` are
            named and left out.
    """
    from plotly.offline import get_plotlyjs  # slow to import, and only this page needs it

    weights, outputs = report.weights, report.outputs
    sets, left_out = _embedded(images)
    blocks = blocks_in_order(weights)
    return (
        environment()
        .get_template("report.html")
        .render(
            report=report,
            weights=weights,
            outputs=outputs,
            headline=_headline(outputs) if outputs else None,
            comparisons=worst_first(outputs) if outputs else (),
            bands=BANDS,
            gauge=_gauge_position(weights.relative_error),
            verdict=next(meaning for name, _, meaning in BANDS if name == weights.band),
            error_meaning=wording.error_meaning(weights.relative_error),
            noise_meaning=wording.noise_meaning(weights.relative_error, weights.noise_floor),
            ledger=ledger_entries(weights),
            ranks=rank_summary(weights),
            extremes=extremes(weights),
            blocks=blocks,
            block_columns=columns.block_columns(blocks),
            columns=columns,
            rows=network_order(weights.rows),
            worst=worst_modules(weights, _FIRST_ROWS),
            first_rows=_FIRST_ROWS,
            first_sets=_FIRST_SETS,
            figures=weight_figures(weights) | (output_figures(outputs) if outputs else {}),
            sets=sets,
            sets_left_out=left_out,
            provenance=provenance or Provenance(),
            script=Markup(_asset("report.js")),
            plotly=Markup(get_plotlyjs()),
        )
    )


def environment() -> "Environment":
    """The templates of this package, with the filters that they use: everything from a file is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow to import, and only pages need it

    made = Environment(
        loader=PackageLoader("lbm_lora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    filters = {name: getattr(wording, name) for name in _FILTERS}
    filters |= {"breakable": columns.breakable, "grouped": _grouped, "number": _number, "setting": _settings}
    cast(dict[str, Any], made.filters).update(filters)
    cast(dict[str, Any], made.globals).update(infinity=math.inf, style=Markup(_asset("pages.css")))
    return made


def _asset(name: str) -> str:
    return (files("lbm_lora.report") / "templates" / name).read_text(encoding="utf-8")


def _grouped(rows: Iterable[Any], group: Callable[[Any], object] | None) -> list[list[Any]]:
    return [list(members) for _, members in groupby(rows, group)] if group else [list(rows)]


def _number(value: float) -> str:
    """A number as JavaScript reads it."""
    return str(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity"


def _settings(values: Mapping[str, object]) -> list[tuple[str, str]]:
    spelt = {"None": "default", "True": "yes", "False": "no"}
    return [(name, spelt.get(str(value), str(value))) for name, value in values.items()]


def _headline(outputs: OutputComparison) -> dict[str, Any]:
    """The verdict in images, at the fewest steps; the band is that of the worst, so that a good mean hides nothing."""
    summary = [entry for entry in outputs.summary if entry.steps == outputs.steps[0]]
    lora = summary[min(1, len(summary) - 1)]  # the variant after the base
    file = next((file for file in outputs.loras if file.variant == lora.variant), None)
    band, meaning = band_of_image(lora.worst_psnr)
    return {
        "lora": lora,
        "base": summary[0] if len(summary) > 1 else None,
        "file": file,
        "band": band,
        "meaning": meaning,
        "is_calibrated": file is not None and file.method == "calibrated",
        "place": _decibel_place,
    }


def band_of_image(psnr: float) -> tuple[Band, str]:
    """The band of a PSNR in dB, and what is seen there; equal images have infinitely many dB."""
    if psnr == math.inf:
        return "excellent", "equal in every value"
    return next((name, meaning) for name, bound, meaning in IMAGE_BANDS if not psnr < bound)


def _decibel_place(psnr: float) -> float:
    """Where a PSNR stands on a scale from 10 to 60 dB, in percent from its left end; beyond it, at the end."""
    return 100 * (min(max(psnr, 10.0), 60.0) - 10.0) / 50.0


def _gauge_position(error: float) -> float:
    """Where an error stands on a scale on which every band is equally long, in percent from its left end."""
    low = 0.0
    for index, (_, bound, _) in enumerate(BANDS):
        if error < bound:
            inside = (error - low) / (bound - low) if bound < math.inf else 1 - low / error
            return 100 * (index + inside) / len(BANDS)
        low = bound
    return 100.0


def _embedded(sets: Iterable[ImageSet]) -> tuple[list[dict[str, Any]], list[str]]:
    """The sets that fit in the page, and the names of those that do not."""
    fitting: list[dict[str, Any]] = []
    left_out: list[str] = []
    room = IMAGES_NBYTES
    for one in sets:
        nbytes = sum(map(len, one.views.values())) + len(one.difference)
        if nbytes > room:
            left_out.append(one.image)
            continue
        room -= nbytes
        views = [
            {"name": name, "title": name, "uri": _uri(one, name, data), "psnr": one.psnrs.get(name)}
            for name, data in one.views.items()
        ]
        uri = _uri(one, "difference", one.difference)
        difference = {"name": "difference", "title": one.difference_title, "uri": uri, "psnr": None}
        fitting.append(
            {"of": one, "is_small": max(one.width, one.height) < _SMALL, "views": views, "difference": difference}
        )
    return fitting, left_out


def _uri(one: ImageSet, name: str, data: bytes) -> str:
    mime = next((mime for magic, mime in _MAGIC.items() if data.startswith(magic)), None)
    if mime is None:
        raise ImageError(f"image '{name}' of {one.image} in the report is not a PNG, JPEG or WebP file.")
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
