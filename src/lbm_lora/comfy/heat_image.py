"""A weight report as an image: relative errors by block and layer, as a heat map."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lbm_lora.fidelity.weights import TensorResult, block_of, block_order
from lbm_lora.naming import ParamName, module_of

_CELL, _PAD = (58, 24), 12
_LOW, _HIGH = (232, 240, 247), (178, 24, 43)
_INK, _PAPER, _EMPTY = (32, 32, 32), (255, 255, 255), (245, 245, 245)
_DECADES = 2.0  # below an error of 1, at which a cell has no shade left


def error_image(rows: Sequence[TensorResult]) -> Image.Image:
    """Return a table of relative errors in percent: a row for each block, a column for each kind of layer.

    Shades are logarithmic: none at 1 %, full at 100 % and above.
    """
    blocks = block_order(rows)
    layers = sorted({_layer(row) for row in rows})
    font = ImageFont.load_default(12)
    left = max(round(font.getlength(text)) for text in (*blocks, "relative error, %")) + 2 * _PAD
    top = max(round(font.getlength(layer)) for layer in layers) + 2 * _PAD
    size = (left + _CELL[0] * len(layers) + _PAD, top + _CELL[1] * len(blocks) + _PAD)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_PAD, top - _PAD), "relative error, %", _INK, font, anchor="lb")
    for column, layer in enumerate(layers):
        label = Image.new("RGB", (top - _PAD, _CELL[1]), _PAPER)
        ImageDraw.Draw(label).text((0, _CELL[1] // 2), layer, _INK, font, anchor="lm")
        image.paste(label.rotate(90, expand=True), (left + column * _CELL[0] + (_CELL[0] - _CELL[1]) // 2, 4))
    for line, block in enumerate(blocks):
        y = top + line * _CELL[1]
        draw.text((_PAD, y + _CELL[1] // 2), block, _INK, font, anchor="lm")
        for column, layer in enumerate(layers):
            members = [row for row in rows if block_of(row.name) == block and _layer(row) == layer]
            _draw_cell(draw, (left + column * _CELL[0], y), joint_error(members), font)
    return image


def joint_error(rows: Sequence[TensorResult]) -> float | None:
    """Return the relative error of tensors together; None if none of them changed."""
    change = math.fsum(row.delta_norm**2 for row in rows)
    missed = math.fsum((row.relative_error * row.delta_norm) ** 2 for row in rows if row.delta_norm)
    return math.sqrt(missed / change) if change else None


def _draw_cell(draw: ImageDraw.ImageDraw, place: tuple[int, int], error: float | None, font: object) -> None:
    x, y = place
    box = (x + 1, y + 1, x + _CELL[0] - 1, y + _CELL[1] - 1)
    if error is None:
        draw.rectangle(box, _EMPTY)
        return
    shade = 0.0 if error <= 0 else min(1.0, max(0.0, 1 + math.log10(error) / _DECADES)) if error < math.inf else 1.0
    color = tuple(round(low + shade * (high - low)) for low, high in zip(_LOW, _HIGH, strict=True))
    draw.rectangle(box, color)
    ink = _PAPER if shade > 0.6 else _INK
    draw.text((x + _CELL[0] // 2, y + _CELL[1] // 2), f"{100 * error:.3g}", ink, font, anchor="mm")  # pyright: ignore[reportArgumentType]


def _layer(row: TensorResult) -> str:
    """Return the kind of layer of a tensor: the end of its module's name, without numbers; biases and norms apart."""
    parts = [part for part in module_of(ParamName(row.name)).split(".") if not part.isdigit()]
    if len(row.shape) < 2:
        return "biases, norms"
    return ".".join(parts[-2:]) if parts[-1] in ("net", "proj") or parts[-1].startswith("to_") else parts[-1]
