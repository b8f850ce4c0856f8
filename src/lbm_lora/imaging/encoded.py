"""Images and masks out of bytes, by the same rules as `imaging.image_file` has for files."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from lbm_lora.errors import ImageError
from lbm_lora.imaging.image_file import BROKEN, READABLE, as_srgb, open_image, upright
from lbm_lora.imaging.masks import as_mask, fitted_mask

Size = tuple[int, int]
"""(width, height), pixels."""

_TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""


def encoded_size(data: bytes) -> Size:
    """Return (width, height) of an image, upright, from its header."""
    try:
        with open_image(io.BytesIO(data)) as opened:
            # a PNG may hold its EXIF behind the pixels, and would be decoded to find it
            exif = opened.getexif() if opened.format != "PNG" or "exif" in opened.info else {}
            width, height = opened.size
            return (height, width) if exif.get(ExifTags.Base.Orientation) in _TURNED else (width, height)
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image in a supported format ({READABLE})") from None
    except BROKEN as error:
        raise ImageError(f"cannot be decoded: {error}") from None


def decode_image(data: bytes, name: str) -> Image.Image:
    """The image as upright 8-bit sRGB, mode `RGB`; see `imaging.image_file.read_image`."""
    return as_srgb(*_open_upright(data), Path(name))


def decode_mask(data: bytes, name: str) -> Image.Image:
    """The mask as mode `L`: the alpha channel where it says something, else the brightness; see `imaging.masks`."""
    mask = as_mask(*_open_upright(data), Path(name))
    if int(np.asarray(mask).max()) <= 1:
        raise ImageError("the mask is black, so no pixel of the pair would count")
    return mask


def decode_fitted_mask(data: bytes, name: str, size: Size) -> Image.Image:
    """The mask as mode `L` in an image's size; see `imaging.masks.read_mask`."""
    return fitted_mask(as_mask(*_open_upright(data), Path(name)), size, Path(name))


def _open_upright(data: bytes) -> tuple[Image.Image, str | None]:
    """The decoded first frame, turned as EXIF says, and its format."""
    try:
        with open_image(io.BytesIO(data)) as opened:
            return upright(opened)
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image in a supported format ({READABLE})") from None
    except BROKEN as error:
        raise ImageError(f"cannot be decoded: {error}") from None
