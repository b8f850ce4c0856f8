"""Draw the layers of the package from the import contracts in pyproject.toml.

    python tools/draw_layers.py        writes docs/images/layers.svg

The contract of type `layers` over `lbm_lora` gives the rows, the contract of type `forbidden` what the core
is. Needs nothing but Python. A test checks that the committed image is what this gives.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs" / "images" / "layers.svg"
PACKAGE = "lbm_lora"

_WIDTH = 800
_MARGIN = 20
_ROW = 54
_BOX = 34
_GAP = 10
_LETTER = 8.0  # a little more than a monospaced letter of 13 px
_PADDING = 11
_NOTES = (
    "Imports go down only. Boxes side by side never import each other; names in one box may.",
    "Green: the core, which imports no network library and works on any two checkpoints.",
)
_STYLE = """\
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #1f2328; }
.note { font-size: 12px; fill: #57606a; }
.page { fill: #ffffff; stroke: #d0d7de; }
.row { fill: #f6f8fa; }
.core { fill: #cfe6d4; stroke: #2da44e; }
.upper { fill: #d8e6fb; stroke: #4a7fd0; }
.arrow { stroke: #57606a; fill: none; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .note, .arrow { fill: #9198a1; }
  .arrow { stroke: #9198a1; fill: none; }
  .page { fill: #0d1117; stroke: #3d444d; }
  .row { fill: #161b22; }
  .core { fill: #1c3a27; stroke: #3fb950; }
  .upper { fill: #1b2f4d; stroke: #6ea0e8; }
}"""


@dataclass(frozen=True)
class Layers:
    """What the contracts say.

    Attributes:
        rows: from the highest layer to the lowest, the names of its modules.
        free: for each row, whether its modules may import each other.
        core: modules that import no network library.
    """

    rows: tuple[tuple[str, ...], ...]
    free: tuple[bool, ...]
    core: frozenset[str]


def read_layers(settings: dict[str, Any]) -> Layers:
    """The layers in a parsed pyproject.toml.

    Raises:
        ValueError: there is not exactly one contract of the layers of the package.
    """
    contracts = settings["tool"]["importlinter"]["contracts"]
    layered = [c for c in contracts if c["type"] == "layers" and c.get("containers") == [PACKAGE]]
    if len(layered) != 1:
        raise ValueError(f"{len(layered)} import contracts are about the layers of {PACKAGE}, not one.")
    rows = [line.replace("(", "").replace(")", "") for line in layered[0]["layers"]]
    forbidden = [c for c in contracts if c["type"] == "forbidden" and "diffusers" in c["forbidden_modules"]]
    return Layers(
        rows=tuple(tuple(name.strip() for name in row.replace(":", "|").split("|")) for row in rows),
        free=tuple(":" in row for row in rows),
        core=frozenset(
            name.removeprefix(f"{PACKAGE}.").partition(".")[0] for c in forbidden for name in c["source_modules"]
        ),
    )


def draw(layers: Layers) -> str:
    """The image as the text of an SVG file; the same layers give the same text."""
    height = 2 * _MARGIN + _ROW * len(layers.rows) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title">',
        f'<title id="title">The layers of {PACKAGE}, the highest on top: imports go down only</title>',
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
    ]
    top = _MARGIN
    for names, free in zip(layers.rows, layers.free, strict=True):
        parts += _row(names, free, layers.core, top)
        top += _ROW
    arrow = _MARGIN + 14
    parts.append(f'<path class="arrow" d="M{arrow} {_MARGIN + 12}V{top - 22}m-5 -8l5 8l5 -8"/>')
    for number, note in enumerate(_NOTES):
        parts.append(f'<text class="note" x="{_MARGIN}" y="{top + 16 + 20 * number}">{note}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _row(names: tuple[str, ...], free: bool, core: frozenset[str], top: int) -> list[str]:
    """One layer: a band, and a box for each module, or one for all where they may import each other."""
    left, right = _MARGIN + 32, _WIDTH - _MARGIN
    labels = ["  ".join(names)] if free else list(names)
    kinds = ["core" if names[0 if free else i] in core else "upper" for i in range(len(labels))]
    widths = [len(label) * _LETTER + 2 * _PADDING for label in labels]
    x = (left + right - sum(widths) - _GAP * (len(widths) - 1)) / 2
    parts = [f'<rect class="row" x="{left}" y="{top}" width="{right - left}" height="{_ROW - 8}" rx="6"/>']
    for label, kind, width in zip(labels, kinds, widths, strict=True):
        y = top + (_ROW - 8 - _BOX) / 2
        parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{_BOX}" rx="5"/>'
            f'<text x="{x + width / 2:g}" y="{y + 22:g}" text-anchor="middle" xml:space="preserve">'
            f"{escape(label)}</text>"
        )
        x += width + _GAP
    return parts


if __name__ == "__main__":
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    IMAGE.write_text(draw(read_layers(pyproject)), encoding="utf-8", newline="\n")
