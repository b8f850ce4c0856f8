"""Read and write image files.

Every image becomes 8-bit sRGB, upright, whatever the file holds: EXIF orientation, colour profiles,
palettes, transparency, 16 bits a channel. What has no unambiguous 8-bit meaning is refused, and what is lost is
a warning.

Pillow opens a file by what is in it, not by its name, and knows formats that start other programs (PostScript) or that
nobody has tested with bad input. So one function opens all images, and it knows a few formats only.
"""

import errno
import io
import struct
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lbm_lora.errors import ImageError, OutputError
from lbm_lora.files import MARK, atomic_path, check_regular, is_ours, is_same
from lbm_lora.missing_path import not_there
from lbm_lora.progress import warn

RESULT = f"{MARK}: result"
"""The mark of an image that a model made of a source."""
SIDE_BY_SIDE = f"{MARK}: side by side"
"""The mark of an image that shows a source next to its result."""
SOURCE_COPY = "lbm-lora: copy of an input"
"""The mark of a copy of a source next to its result: an image of the user's, not one that a model made."""

BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""Errors of Pillow's decoders on damaged files."""

_SOFTWARE = 0x0131  # the EXIF tag

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")
"""Formats that may be opened, by Pillow's names; MPO, of cameras, is JPEG's. HEIF needs the package pillow-heif."""

READABLE = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, HEIF with pillow-heif"
"""`FORMATS` for messages."""

_WHITE_IS_ZERO = 0
_PHOTOMETRIC = 262  # a tag of TIFF: how numbers become brightness

_WRITERS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 4},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
    "GIF": {},
}
"""The formats that hold an RGB image, and how they are written."""


@cache
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this installation can decode."""
    if find_spec("pillow_heif") is not None:
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def readable_extensions() -> frozenset[str]:
    """The extensions, lower case with the dot, of the formats that can be read."""
    formats = {*known_formats(), "MPO"}
    return frozenset(ext for ext, kind in Image.registered_extensions().items() if kind in formats)


def writable_extensions() -> frozenset[str]:
    """The extensions, lower case with the dot, of the formats that can be written."""
    formats = [kind for kind in known_formats() if kind in _WRITERS and kind in Image.SAVE]
    return frozenset(ext for ext, kind in Image.registered_extensions().items() if kind in formats)


def open_image(file: Path | io.BytesIO) -> Image.Image:
    """Open an image and read its header, not its pixels. All images are opened here."""
    if isinstance(file, Path):
        check_regular(file)
    return Image.open(file, formats=known_formats())


def read_image(path: Path) -> Image.Image:
    """Read the image of a file as upright 8-bit sRGB, mode `RGB`.

    Transparent parts become white, an animation its first frame, 16 bits a channel 8; each is a warning.
    """
    return as_srgb(*open_upright(path), path)


def as_srgb(image: Image.Image, kind: str | None, path: Path) -> Image.Image:
    """Convert a decoded image to 8-bit sRGB, mode `RGB`; see `read_image`."""
    check_range(image, kind, path)
    is_wide = image.mode.startswith("I")
    if not is_wide and not image.has_transparency_data and "icc_profile" not in image.info:
        return image.convert("RGB")
    from lbm_lora.model.bridge_pipeline import in_srgb  # diffusers takes seconds, and most images need none of it

    if not is_wide and image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        warn(f"{path} is partly transparent; a white background is used.")
    return in_srgb(
        image,
        lambda error: warn(f"{path}: its colour profile cannot be used ({error}); the colours are taken as sRGB."),
    )


def open_upright(path: Path) -> tuple[Image.Image, str | None]:
    """The decoded first frame of a file in its own mode, turned as EXIF says, and the file's format."""
    try:
        with open_image(path) as opened:
            frames = getattr(opened, "n_frames", 1)
            # A camera's MPO is one photo with a preview of itself, not an animation.
            if frames > 1 and opened.format != "MPO":
                warn(f"{path} has {frames} frames: only the first is used.")
            return upright(opened)
    except FileNotFoundError:
        raise ImageError(not_there(path, readable_extensions())) from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{path} is not an image in a supported format ({READABLE}).") from None
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno == errno.ENXIO:
            raise ImageError(f"{path} is not a regular file.") from None
        raise ImageError(f"{path} cannot be decoded: {error}. Is the file complete?") from None


def upright(opened: Image.Image) -> tuple[Image.Image, str | None]:
    """The decoded pixels of an opened image in its own mode, turned as EXIF says, and the file's format.

    Grey of 12 bits is brought to 16, and so is 16-bit grey whose zero is white: Pillow leaves both as they are stored.
    """
    kind = opened.format
    tiles = getattr(opened, "tile", None) or [(None, None, None, "")]
    arguments = tiles[0][3]  # how the pixels are stored, in Pillow's words (RGB;16B), until they are decoded
    mode = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    is_negative = opened.mode == "I;16" and getattr(opened, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    image = ImageOps.exif_transpose(opened)
    if ";16" in mode:
        warn("images with 16 bits per channel are reduced to 8, as the model works on 8-bit images.")
    if mode.startswith("I;12"):
        image = Image.fromarray(np.round(np.asarray(image) * (65535 / 4095)).astype(np.uint16))
    if is_negative:
        image = Image.fromarray(65535 - np.asarray(image))
    return image, kind


def check_range(image: Image.Image, kind: str | None, path: Path) -> None:
    """Refuse pixels of floating point or 32 bits, which have no fixed white.

    Args:
        kind: the file's format: Pillow decodes 16-bit PNG files into 32-bit integers in some versions.
    """
    if image.mode == "F" or (image.mode == "I" and kind != "PNG"):
        name = np.asarray(image).dtype.name
        raise ImageError(
            f"{path} has {name} pixels, whose white is not defined. Save it with 8 or 16 bits per channel."
        )


def write_image(image: Image.Image, path: Path, *, mark: str) -> None:
    """Write an image in the format of the path's extension; the file is complete or absent.

    JPEG, WebP and AVIF are written at high quality, JPEG without colour subsampling.

    Args:
        image: mode `RGB`.
        mark: what the file says about its origin, in its EXIF data: `RESULT` or another one built from `files.MARK`.
    """
    extension = path.suffix.lower()
    if extension not in writable_extensions():
        raise OutputError(f"{path}: '{extension}' is not a supported output format. Use .png, .jpg or .webp.")
    kind = Image.registered_extensions()[extension]
    if kind == "GIF":
        warn(f"{path}: a GIF holds 256 colours; the image is reduced to them.")
    try:
        with atomic_path(path) as temporary:
            image.save(temporary, format=kind, **_marked(kind, mark))
            if kind == "BMP":  # it holds no text, and readers stop after the pixels
                with temporary.open("ab") as file:
                    file.write(f"\0{mark}\0".encode())  # as EXIF data end a text
    except OutputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path} cannot be written: {error}. Choose another path or format.") from None


def write_copy(image: Image.Image, path: Path, *, inputs: Iterable[Path]) -> bool:
    """Write a copy of an input as `write_image` does; return whether it was written.

    An existing file that is not ours is kept, with a warning; so is an input itself, without one.
    """
    if path.exists():
        if any(is_same(path, one) for one in inputs):
            return False
        if not is_ours(path):
            warn(f"{path} exists and is not a copy of an input: it is kept, and none is written.")
            return False
    write_image(image, path, mark=SOURCE_COPY)
    return True


def _marked(kind: str, mark: str) -> dict[str, Any]:
    """Return the options for writing a format: EXIF data, or a comment in a GIF, name the program that wrote it."""
    exif = Image.Exif()
    exif[_SOFTWARE] = mark
    return {**_WRITERS[kind], **({"comment": mark} if kind == "GIF" else {"exif": exif})}


def encode_image(image: Image.Image, extension: str, *, mark: str, optimize: bool = False) -> bytes:
    """Return the bytes that `write_image` would write to a file with this extension (lower case with the dot)."""
    file = io.BytesIO()
    kind = Image.registered_extensions()[extension]
    image.save(file, format=kind, **{"optimize": optimize, **_marked(kind, mark)})
    return file.getvalue()
