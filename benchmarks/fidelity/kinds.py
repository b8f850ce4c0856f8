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
ALIKE: Mapping[str, str] = {
    "alike": "other images of the calibration's kind",
    "alike_larger": "the same, 2.25 times the pixels",
    "alike_smaller": "the same, half the pixels",
}
"""Map from the kinds of which predictions speak to the page's words for them."""
PREDICTED: Mapping[str, str] = {
    "photos": "content",
    "noise": "content",
    "larger": "larger",
    "smaller": "smaller",
    "alike_larger": "larger",
    "alike_smaller": "smaller",
}
"""Map from kind to the shift that its prediction is for; the other kinds are predicted as inputs of the calibration's
kind."""

_SIDE = 128  # pixels, the mini model's
_GRAINS = (1, 1, 8, 32)  # pixels of a noise image's spots


def kinds(folder: Path, held_out: Sequence[Path], alike: Sequence[Path] = ()) -> dict[str, Kind]:
    """Return all kinds of which there are images.

    Args:
        folder: folder for the images of noise, made if missing.
        held_out: sources that calibration does not see, of objects, textures and lights that it does not see.
        alike: sources that calibration does not see, of the kind that it sees.
    """
    found = {
        HELD_OUT: Kind(images=held_out),
        "photos": Kind(images=sorted(bundled.PHOTOS.glob("*.jpg"))),
        "noise": Kind(images=_noise(folder)),
        "larger": Kind(images=held_out, size=round(_SIDE * 1.5)),
        "smaller": Kind(images=held_out, size=round(_SIDE / 2**0.5)),
        "alike": Kind(images=alike),
        "alike_larger": Kind(images=alike, size=round(_SIDE * 1.5)),
        "alike_smaller": Kind(images=alike, size=round(_SIDE / 2**0.5)),
    }
    return {name: kind for name, kind in found.items() if kind.images}


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
