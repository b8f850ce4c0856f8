"""Masks: which pixels of the result are used. White takes the model's result, black keeps the source."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lbm_lora.errors import ImageError, plural
from lbm_lora.files import is_same
from lbm_lora.imaging.image_file import check_range, open_upright, readable_extensions
from lbm_lora.imaging.paths import image_name
from lbm_lora.missing_path import home_path, not_there


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """The mask of a file as mode `L` in an image's size, soft edges kept.

    The mask is the file's alpha channel where that says something, else its brightness.
    """
    return fitted_mask(as_mask(*open_upright(path), path), size, path)


def fitted_mask(mask: Image.Image, size: tuple[int, int], path: Path) -> Image.Image:
    """A mask (mode `L`) in an image's size; see `read_mask`."""
    brightest = int(np.asarray(mask).max())
    if brightest <= 1:
        raise ImageError(f"{path} is black: its brightest value is {brightest} of 255. White marks the pixels to take.")
    aspects = mask.width * size[1] / (mask.height * size[0])
    if abs(aspects - 1) > 0.01 + 1 / min(*mask.size, *size):  # but for the rounding of a side to whole pixels, and 1 %
        raise ImageError(
            f"{path} is {mask.width}x{mask.height}, but its image {size[0]}x{size[1]}: the shapes differ. "
            "Make the mask from the image itself."
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def find_masks(text: str | Sequence[str], sources: Sequence[Path]) -> tuple[Path, ...]:
    """The mask file of each source: one file for all, or in a folder the one that is called as the source is.

    Several files are one for each source.

    A source `lemon.png` or `lemon.source.png` has the mask `lemon.mask.png`, else one of its own name, else
    `lemon.png`; the extension may be another, and a source is not its own mask.
    """
    if not isinstance(text, str):
        if len(text) == 1:
            return find_masks(text[0], sources)
        if len(text) != len(sources):
            raise ImageError(f"{plural(len(text), 'mask')} for {plural(len(sources), 'image')}: give one for each.")
        return tuple(find_masks(one, [source])[0] for one, source in zip(text, sources, strict=True))
    path = home_path(text)
    if os.path.lexists(path) and not path.is_dir():
        return (path,) * len(sources)  # whoever opens it says what is wrong with it
    if not path.is_dir():
        raise ImageError(
            f"{not_there(path, readable_extensions())} Give a mask, or a folder with a mask of each image's name."
        )
    extensions = readable_extensions()
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in extensions)
    return tuple(_mask_of(source, path, images) for source in sources)


def as_mask(image: Image.Image, kind: str | None, path: Path) -> Image.Image:
    """A decoded image as mode `L`: its alpha channel where that says something, else its brightness."""
    check_range(image, kind, path)
    if not image.has_transparency_data and not image.mode.startswith("I"):
        return image.convert("L")
    from lbm_lora.model.bridge_pipeline import in_grey  # diffusers takes seconds, and most masks need none of it

    return in_grey(image)


def _mask_of(source: Path, folder: Path, images: Sequence[Path]) -> Path:
    name = image_name(source)
    others = [path for path in images if not is_same(path, source)]
    named = ([path for path in others if path.stem == stem] for stem in (f"{name}.mask", source.stem, name))
    masks = next(filter(None, named), [])
    if not masks:
        raise ImageError(
            f"{folder} has no mask for {source.name}: no image in it is called '{name}' or '{name}.mask'. Add one, or "
            "omit the image."
        )
    if len(masks) > 1:
        names = " and ".join(path.name for path in masks)
        raise ImageError(f"{folder} has more than one mask for {source.name}: {names}. Keep one.")
    return masks[0]
