"""Show several images side by side in one, each with its label: source | base | with LoRA | tuned."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lbm_lora.errors import ImageError

_SMALLEST_TILE = 256
"""Tiles are enlarged to at least this (longer side, pixels), so that their labels are readable next to them."""

_LARGEST_TILE = 768
"""Tiles are reduced to at most this: the image is for looking, the results have their own files."""

_GAP = 8


def tile(image: Image.Image) -> Image.Image:
    """Return an image in its size for a comparison.

    Small ones are enlarged by a whole factor and by repeating pixels, so that nothing the model made is
    smoothed away; large ones are reduced.
    """
    longer = max(image.size)
    if longer > _LARGEST_TILE:
        shrink = _LARGEST_TILE / longer
        size = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
        return image.resize(size, Image.Resampling.LANCZOS)
    factor = -(-_SMALLEST_TILE // longer)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def comparison_grid(labels: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return an image with one column for each label and one row for each list of images."""
    if not rows or any(len(row) != len(labels) for row in rows):
        counts = ", ".join(str(len(row)) for row in rows) or "none"
        raise ImageError(f"a comparison needs rows of {len(labels)} images, one for each label, not {counts}.")
    tiles = [[tile(image) for image in row] for row in rows]
    # a share of the largest tile, readable when the whole is scaled down
    font = ImageFont.load_default(max(20, max(max(image.size) for row in tiles for image in row) // 24))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    corners = [pen.multiline_textbbox((0, 0), label, font=font)[2:] for label in labels]
    boxes = [(int(right) + 1, int(bottom) + 1) for right, bottom in corners]
    widths = [max(box[0], *(row[i].width for row in tiles)) for i, box in enumerate(boxes)]
    heights = [max(image.height for image in row) for row in tiles]
    head = max(box[1] for box in boxes) + _GAP
    size = sum(widths) + _GAP * (len(widths) + 1), head + sum(heights) + _GAP * (len(heights) + 1)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    left = _GAP
    for column, label in enumerate(labels):
        draw.multiline_text((left, _GAP), label, fill="black", font=font)
        top = head + _GAP
        for row, height in zip(tiles, heights, strict=True):
            canvas.paste(row[column], (left, top))
            top += height + _GAP
        left += widths[column] + _GAP
    return canvas
