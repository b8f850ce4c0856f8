"""Kinds of images to measure on: held-out ones like those of the calibration, and others that are unlike them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fidelity.outputs import Kind
from lbm_lora import bundled

HELD_OUT = "held_out"
"""The kind that is like the calibration's."""
SHIFTED: Mapping[str, str] = {
    "photos": "photos",
    "noise": "noise",
    "larger": "held-out images, 2.25 times the pixels",
    "smaller": "held-out images, half the pixels",
}
"""Map from the kinds that are unlike it to the page's words for them."""

_SIDE = 128  # pixels, the mini model's
_GRAINS = (1, 1, 8, 32)  # pixels of a noise image's spots


def kinds(folder: Path, held_out: Sequence[Path]) -> dict[str, Kind]:
    """Return all kinds.

    Args:
        folder: folder for the images of noise, made if missing.
        held_out: sources that calibration does not see.
    """
    few = held_out[::3]
    return {
        HELD_OUT: Kind(images=held_out),
        "photos": Kind(images=sorted(bundled.PHOTOS.glob("*.jpg"))),
        "noise": Kind(images=_noise(folder)),
        "larger": Kind(images=few, size=round(_SIDE * 1.5)),
        "smaller": Kind(images=few, size=round(_SIDE / 2**0.5)),
    }


def _noise(folder: Path) -> list[Path]:
    """Write images of independent random colors, in spots of several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    found: list[Path] = []
    for index, grain in enumerate(_GRAINS):
        colors = draw.integers(0, 256, (_SIDE // grain, _SIDE // grain, 3), dtype=np.uint8)
        path = folder / f"noise_{index}.png"
        Image.fromarray(colors).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path)
        found.append(path)
    return found
