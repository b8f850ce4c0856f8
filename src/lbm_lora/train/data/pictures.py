"""Pictures and masks out of bytes, by the same rules as `imaging` has for files."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lbm_lora.errors import ImageError
from lbm_lora.imaging.files import (
    _BROKEN,  # pyright: ignore[reportPrivateUsage]
    _flattened,  # pyright: ignore[reportPrivateUsage]
    _in_srgb,  # pyright: ignore[reportPrivateUsage]
    grey_of_wide,
)
from lbm_lora.train.data.sample import Size

_TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""


def picture_size(data: bytes) -> Size:
    """(width, height) of a picture, upright, from its header.

    Raises:
        ImageError: the bytes begin no picture that can be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            # a PNG may hold its EXIF behind the pixels, and would be decoded to find it
            exif = opened.getexif() if opened.format != "PNG" or "exif" in opened.info else {}
            width, height = opened.size
            return (height, width) if exif.get(ExifTags.Base.Orientation) in _TURNED else (width, height)
    except Image.UnidentifiedImageError:
        raise ImageError("no picture in a format that can be read (PNG, JPEG, WebP, TIFF ...)") from None
    except _BROKEN as error:
        raise ImageError(f"cannot be decoded: {error}") from None


def decode_picture(data: bytes, name: str) -> Image.Image:
    """The picture as upright 8-bit sRGB, mode `RGB`; see `imaging.files.read_image`.

    Args:
        data: of a picture file.
        name: for errors and warnings.

    Raises:
        ImageError: the bytes are damaged or no picture, or its pixels have no fixed range.
    """
    picture, kind = _open_upright(data)
    path = Path(name)
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(grey_of_wide(picture, kind, path)).convert("RGB")
    profile = picture.info.get("icc_profile")
    if picture.has_transparency_data:
        picture = _flattened(picture, path)
    if profile:
        picture = _in_srgb(picture, profile, path)
    return picture.convert("RGB")


def decode_mask(data: bytes, name: str) -> Image.Image:
    """The mask as mode `L`: the alpha channel where it says something, else the brightness; see `imaging.masks`.

    Raises:
        ImageError: the bytes are damaged or no picture, or the mask is black: nothing of the pair would count.
    """
    picture, kind = _open_upright(data)
    if picture.mode.startswith("I") or picture.mode == "F":
        mask = Image.fromarray(grey_of_wide(picture, kind, Path(name)))
    else:
        alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
        opaque = alpha is None or alpha.getextrema() == (255, 255)
        mask = picture.convert("RGB").convert("L") if opaque or alpha is None else alpha
    if int(np.asarray(mask).max()) <= 1:
        raise ImageError("the mask is black: no pixel of the pair would count")
    return mask


def _open_upright(data: bytes) -> tuple[Image.Image, str | None]:
    """The decoded first frame, turned as EXIF says, and its format."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return ImageOps.exif_transpose(opened), opened.format
    except Image.UnidentifiedImageError:
        raise ImageError("no picture in a format that can be read (PNG, JPEG, WebP, TIFF ...)") from None
    except _BROKEN as error:
        raise ImageError(f"cannot be decoded: {error}") from None
