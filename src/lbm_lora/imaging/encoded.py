"""Images and masks out of bytes, by the same rules as `imaging.image_file` has for files."""

import io
from collections.abc import Generator
from contextlib import contextmanager
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
    with _opened(data) as image:
        # a PNG may hold its EXIF behind the pixels, and would be decoded to find it
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        width, height = image.size
        return (height, width) if exif.get(ExifTags.Base.Orientation) in _TURNED else (width, height)


def decode_image(data: bytes, name: str) -> Image.Image:
    """The image as upright 8-bit sRGB, mode `RGB`; see `imaging.image_file.read_image`."""
    with _opened(data) as image:
        decoded, kind = upright(image)
    return as_srgb(decoded, kind, Path(name))


def decode_mask(data: bytes, name: str, size: Size | None = None) -> Image.Image:
    """The mask as mode `L`, in an image's size where one is given; see `imaging.masks.read_mask`."""
    with _opened(data) as image:
        decoded, kind = upright(image)
    mask = as_mask(decoded, kind, Path(name))
    if size is not None:
        return fitted_mask(mask, size, Path(name))
    if int(np.asarray(mask).max()) <= 1:
        raise ImageError("the mask is black, so no pixel of the pair would count")
    return mask


@contextmanager
def _opened(data: bytes) -> Generator[Image.Image]:
    try:
        with open_image(io.BytesIO(data)) as image:
            yield image
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image in a supported format ({READABLE})") from None
    except BROKEN as error:
        raise ImageError(f"cannot be decoded: {error}") from None
