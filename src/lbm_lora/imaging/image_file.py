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
from PIL import Image, ImageCms, ImageOps

from lbm_lora.atomic import atomic_path
from lbm_lora.errors import ImageError, OutputError
from lbm_lora.late_files import expect_only
from lbm_lora.missing_path import not_there
from lbm_lora.output_place import is_protected
from lbm_lora.ownership import SOURCE_COPY, is_ours
from lbm_lora.progress import warn
from lbm_lora.regular_file import check_regular

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
    """Open an image and read its header, not its pixels. All images are opened here.

    Raises:
        OSError: it is missing, or not a regular file.
        UnidentifiedImageError: it is in none of the formats of `FORMATS`, whatever its name is.
    """
    if isinstance(file, Path):
        check_regular(file)
    return Image.open(file, formats=known_formats())


def read_image(path: Path) -> Image.Image:
    """Read the image of a file as upright 8-bit sRGB, mode `RGB`.

    Transparent parts become white, an animation its first frame, 16 bits a channel 8; each is a warning.

    Raises:
        ImageError: the file is missing, damaged or not an image, or its pixels have no fixed range.
    """
    return as_srgb(*open_upright(path), path)


def as_srgb(image: Image.Image, kind: str | None, path: Path) -> Image.Image:
    """Convert a decoded image to 8-bit sRGB, mode `RGB`; see `read_image`.

    Args:
        image: upright, in its own mode.
        kind: the file's format.
        path: for errors and warnings.

    Raises:
        ImageError: its pixels have no fixed range.
    """
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(grey_of_wide(image, kind, path))
    if image.has_transparency_data:
        image = _flattened(image, path)
    if profile:
        image = _in_srgb(image, profile, path)
    return image.convert("RGB")


def open_upright(path: Path) -> tuple[Image.Image, str | None]:
    """The decoded first frame of a file in its own mode, turned as EXIF says, and the file's format.

    Raises:
        ImageError: see `read_image`.
    """
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

    Raises:
        one of `BROKEN`: the file is damaged.
    """
    kind, mode = opened.format, _raw_mode(opened)
    is_negative = opened.mode == "I;16" and _tiff_tag(opened, _PHOTOMETRIC) == _WHITE_IS_ZERO
    image = ImageOps.exif_transpose(opened)
    if ";16" in mode:
        warn("images with 16 bits per channel are reduced to 8, as the model works on 8-bit images.")
    if mode.startswith("I;12"):
        image = Image.fromarray(np.round(np.asarray(image) * (65535 / 4095)).astype(np.uint16))
    if is_negative:
        image = Image.fromarray(65535 - np.asarray(image))
    return image, kind


def _raw_mode(opened: Image.Image) -> str:
    """How the pixels are stored, in Pillow's words (RGB;16B); to be asked before they are decoded."""
    tiles = getattr(opened, "tile", None) or [(None, None, None, "")]
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _tiff_tag(opened: Image.Image, tag: int) -> object:
    return getattr(opened, "tag_v2", {}).get(tag)


def grey_of_wide(image: Image.Image, kind: str | None, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The 8-bit values (height, width) of an image with 16 bits a pixel.

    Raises:
        ImageError: floating point or 32-bit pixels, which have no fixed white.
    """
    values = np.asarray(image)
    # Pillow decodes 16-bit PNG files into 32-bit integers in some versions; their white stays 65535.
    if image.mode == "F" or (image.mode == "I" and kind != "PNG"):
        raise ImageError(
            f"{path} has {values.dtype.name} pixels, whose white is not defined. Save it with 8 or 16 bits per channel."
        )
    return np.round(values.astype(np.float64) / 257.0).astype(np.uint8)


def write_image(image: Image.Image, path: Path, *, mark: str) -> None:
    """Write an image in the format of the path's extension; the file is complete or absent.

    JPEG, WebP and AVIF are written at high quality, JPEG without colour subsampling.

    Args:
        image: mode `RGB`.
        path: path of the output.
        mark: what the file says about its origin, in its EXIF data: a mark of `lbm_lora.ownership`.

    Raises:
        OutputError: an unknown extension, or a file that cannot be written.
    """
    kind = _writer_of(path)
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
    """Write a copy of an input as `write_image` does, with a mark in its EXIF data.

    An existing file without the mark is kept, with a warning; so is an input itself, without one.

    Returns:
        Whether it was written.

    Raises:
        OutputError: as in `write_image`; or a file without the mark appears while the copy is encoded.
    """
    if path.exists():
        if any(taken.exists() and taken.samefile(path) for taken in inputs):
            return False
        if not is_source_copy(path):
            warn(f"{path} exists and is not a copy of an input: it is kept, and none is written.")
            return False
        if path.is_symlink() or is_protected(path):
            warn(f"{path} is a link, or write-protected: it is kept, and no copy of the input is written.")
            return False
    expect_only(path, is_source_copy)
    write_image(image, path, mark=SOURCE_COPY)
    return True


def _marked(kind: str, mark: str) -> dict[str, Any]:
    """Return the options for writing a format: EXIF data, or a comment in a GIF, name the program that wrote it."""
    exif = Image.Exif()
    exif[_SOFTWARE] = mark
    return {**_WRITERS[kind], **({"comment": mark} if kind == "GIF" else {"exif": exif})}


def is_source_copy(path: Path) -> bool:
    """Return whether a file is a copy of a source that `write_copy` wrote."""
    return is_ours(path, SOURCE_COPY)


def encode_image(image: Image.Image, extension: str, *, mark: str, optimize: bool = False) -> bytes:
    """Return the bytes that `write_image` would write to a file with this extension (lower case with the dot)."""
    file = io.BytesIO()
    kind = Image.registered_extensions()[extension]
    image.save(file, format=kind, **{"optimize": optimize, **_marked(kind, mark)})
    return file.getvalue()


def _writer_of(path: Path) -> str:
    extension = path.suffix.lower()
    if extension not in writable_extensions():
        raise OutputError(f"{path}: '{extension}' is not a supported output format. Use .png, .jpg or .webp.")
    return Image.registered_extensions()[extension]


def _flattened(image: Image.Image, path: Path) -> Image.Image:
    """Return the image on white, with a warning if it is not opaque."""
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() == (255, 255):
        return layered.convert("RGB")
    warn(f"{path} is partly transparent; a white background is used.")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes, path: Path) -> Image.Image:
    """Return the image converted from its colour profile to sRGB, or unchanged if the profile cannot be used."""
    direct = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(direct, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        warn(f"{path}: its colour profile cannot be used ({error}); the colours are taken as sRGB.")
        return image
    return converted or image
