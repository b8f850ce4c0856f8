"""Draw the images of the concept pages, from the bundled mini model.

    python tools/draw_concepts.py        writes docs/images/concepts/{bridge.png,factors.svg,noise-floor.svg}

Some seconds on one core.
"""

# ruff: noqa: RUF001, E501 - multiplication signs, and lines of SVG

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from lbm_lora import bundled, load_model, make_base, open_checkpoint
from lbm_lora.factorize import rank_above, rounding_edge
from lbm_lora.imaging.grids import comparison_grid
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.tensors import to_images, to_tensor
from lbm_lora.model.bridge import interpolate
from lbm_lora.naming import ParamName

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "concepts"
TUNED = bundled.TUNED / "model.safetensors"
SHOWN_PAIR = "milk-00-dawn-to-forest"
SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)
SHOWN_MATRIX = ParamName("mid_block.attentions.0.transformer_blocks.7.attn2.to_q.weight")

_STYLE = """\
text { font: 14px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2328; }
.note { font-size: 13px; fill: #57606a; }
.page { fill: #ffffff; stroke: #d0d7de; }
.grid { stroke: #d8dee4; }
.matrix { fill: #d8e6fb; stroke: #4a7fd0; stroke-width: 1.5; }
.thin { fill: #cfe6d4; stroke: #2da44e; stroke-width: 1.5; }
.delta { stroke: #4a7fd0; fill: none; stroke-width: 2.5; }
.noise { stroke: #bc4c00; fill: none; stroke-width: 2.5; stroke-dasharray: 7 4; }
.mark { stroke: #57606a; stroke-dasharray: 2 4; }
.blue { fill: #2f62b0; }
.orange { fill: #bc4c00; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .note { fill: #9198a1; }
  .page { fill: #0d1117; stroke: #3d444d; }
  .grid { stroke: #2a313a; }
  .matrix { fill: #1b2f4d; stroke: #6ea0e8; }
  .thin { fill: #1c3a27; stroke: #3fb950; }
  .delta { stroke: #6ea0e8; }
  .noise { stroke: #f0883e; }
  .mark { stroke: #9198a1; }
  .blue { fill: #8db6f0; }
  .orange { fill: #f0883e; }
}"""


def svg(width: int, height: int, title: str, shapes: Sequence[str]) -> str:
    """An image with a page of its own color, so that it can be read on any."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-labelledby="title">',
            f'<title id="title">{title}</title>',
            f"<style>\n{_STYLE}\n</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def factors() -> str:
    """A delta as the product of two thin matrices, in the proportions of a 640 x 640 layer at rank 32."""
    side, thin, top, left = 160, 12, 50, 60
    up, down = left + side + 70, left + side + 70 + thin + 50
    middle = top + side / 2

    def _box(kind: str, x: float, y: float, width: float, height: float) -> str:
        return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>'

    def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
        return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'

    return svg(
        720,
        270,
        "A delta of 640 x 640 numbers is replaced by up, 640 x 32, times down, 32 x 640",
        [
            _box("matrix", left, top, side, side),
            _text(left + side / 2, top - 12, "delta"),
            _text(left + side / 2, middle + 5, "out × in"),
            _text(left + side + 35, middle + 8, "≈"),
            _box("thin", up, top, thin, side),
            _text(up + thin / 2, top - 12, "up"),
            _text(up - 9, top + side + 22, "out × rank", "start", "note"),
            _text(up + thin + 25, middle + 8, "·"),
            _box("thin", down, middle - thin / 2, side, thin),
            _text(down + side / 2, middle - thin / 2 - 12, "down"),
            _text(down + side / 2, middle + thin / 2 + 22, "rank × in", "middle", "note"),
            _text(left, top + side + 22, "640 × 640: 409,600 numbers", "start", "note"),
            _text(down + side + 26, middle - 14, "rank 32:", "start", "note"),
            _text(down + side + 26, middle + 5, "2 × 640 × 32", "start", "note"),
            _text(down + side + 26, middle + 24, "= 40,960 numbers", "start", "note"),
        ],
    )


def noise_floor(delta: torch.Tensor, tuned: torch.Tensor) -> str:
    """Singular values of a delta, and those of the rounding of its tuned matrix alone."""
    ulp = torch.ldexp(torch.ones_like(tuned, dtype=torch.float32), torch.frexp(tuned.float()).exponent - 8)
    noise = (torch.rand(tuned.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * ulp
    values, of_noise = torch.linalg.svdvals(delta), torch.linalg.svdvals(noise)
    kept = rank_above(values, rounding_edge(tuned))
    width, height, left, top, right, bottom = 720, 400, 70, 30, 24, 56
    high, low = math.ceil(math.log10(float(values[0]))), -5
    step = (width - left - right) / (len(values) - 1)

    def _x(at: float) -> float:
        return left + (at - 1) * step

    def _y(value: float) -> float:
        share = (high - max(math.log10(value), low)) / (high - low)
        return top + share * (height - top - bottom)

    def _line(kind: str, found: torch.Tensor) -> str:
        points = " ".join(f"{_x(at):.1f},{_y(float(value)):.1f}" for at, value in enumerate(found, start=1))
        return f'<polyline class="{kind}" points="{points}"/>'

    shapes = []
    for power in range(low, high + 1):
        y = _y(10.0**power)
        shapes.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        shapes.append(
            f'<text class="note" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:.{max(0, -power)}f}</text>'
        )
    for at in (1, 16, 32, 48, len(values)):
        y = height - bottom + 22
        shapes.append(f'<text class="note" x="{_x(at):.1f}" y="{y}" text-anchor="middle">{at}</text>')
    center = (left + width - right) / 2
    shapes += [
        f'<text class="note" x="{center}" y="{height - 12}" text-anchor="middle">singular value, from the largest</text>',
        f'<line class="mark" x1="{_x(kept + 0.5):.1f}" y1="{top}" x2="{_x(kept + 0.5):.1f}" y2="{height - bottom}"/>',
        f'<text class="note" x="{_x(kept) - 6:.1f}" y="{top + 16}" text-anchor="end">'
        f"{kept} of {len(values)} ranks stand above the rounding</text>",
        _line("noise", of_noise),
        _line("delta", values),
        f'<text class="blue" x="{_x(14):.1f}" y="{_y(float(values[13])) - 12:.1f}">delta</text>',
        f'<text class="orange" x="{_x(4):.1f}" y="{_y(float(of_noise[3])) + 34:.1f}">rounding noise of bf16 alone</text>',
    ]
    return svg(width, height, "Singular values of a delta against those of rounding noise alone", shapes)


def bridge(base: Path) -> Image.Image:
    """The bridge of one pair, decoded at five places."""
    model = load_model(base, dtype=torch.float32)
    images = [read_image(bundled.PAIRS / f"{SHOWN_PAIR}.{role}.png") for role in ("source", "target")]
    source, target = model.encode(to_tensor(images)).split(1)
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    states = [interpolate(source, target, sigma, noise, model.config.bridge_noise_sigma) for sigma in SIGMAS]
    names = {1.0: "source", 0.0: "target"}
    labels = [f"sigma {sigma:g}" + (f": {names[sigma]}" if sigma in names else "") for sigma in SIGMAS]
    return comparison_grid(labels, [[to_images(model.decode(state))[0] for state in states]])


def main() -> None:
    """Write the images."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "base.ckpt"
        base = make_base(path, config_path=bundled.TUNED / "config.yaml").base.safetensors
        shown = bridge(base)
        shown.resize((shown.width * 3 // 4, shown.height * 3 // 4), Image.Resampling.LANCZOS).quantize(128).save(
            FOLDER / "bridge.png", optimize=True
        )
        with open_checkpoint(base) as first, open_checkpoint(TUNED) as second:
            before, after = first.component().read(SHOWN_MATRIX), second.component().read(SHOWN_MATRIX)
        text = noise_floor(after.float() - before.float(), after)
    (FOLDER / "noise-floor.svg").write_text(text, encoding="utf-8", newline="\n")
    (FOLDER / "factors.svg").write_text(factors(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
