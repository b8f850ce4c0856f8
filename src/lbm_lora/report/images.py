"""The images of a page: bytes in, data URIs out, within a limit."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lbm_lora.errors import ImageError

IMAGES_NBYTES = 12 * 2**20
"""Limit for all images in one page; sets beyond it are named and left out."""

SMALL = 256
"""Images whose longer side is below this, in pixels, are enlarged by repeating pixels: nothing is smoothed away."""

_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One source and what the models make of it.

    Attributes:
        image: file name of the source, without its folder.
        width, height: of every image of the set, pixels.
        views: what is seen -> bytes of a PNG, JPEG or WebP file. From the source to the reference, which is the last.
        psnrs: view -> PSNR to the reference's image, dB; of those that were measured.
        difference: the LoRA's image minus the reference's, amplified, as such a file.
        difference_title: what it shows, with its scale.
    """

    image: str
    width: int
    height: int
    views: Mapping[str, bytes]
    psnrs: Mapping[str, float]
    difference: bytes
    difference_title: str


@dataclass(frozen=True, kw_only=True)
class EmbeddedView:
    """One image of the page.

    Attributes:
        name: what is seen.
        title: the same for readers who see this image alone.
        uri: its bytes as a data URI.
        psnr: to the reference's image, dB; None where it was not measured.
        is_difference: whether it shows the difference of two images.
    """

    name: str
    title: str
    uri: str
    psnr: float | None = None
    is_difference: bool = False


@dataclass(frozen=True, kw_only=True)
class EmbeddedSet:
    """A set as the page shows it.

    Attributes:
        is_small: whether pixels are repeated where it is enlarged.
    """

    image: str
    width: int
    height: int
    is_small: bool
    views: tuple[EmbeddedView, ...]


def embedded(sets: Iterable[ImageSet]) -> tuple[list[EmbeddedSet], list[str]]:
    """The sets that fit in the page, and the names of those that do not.

    Raises:
        ImageError: the bytes of an image are not a PNG, JPEG or WebP file.
    """
    shown: list[EmbeddedSet] = []
    left_out: list[str] = []
    room = IMAGES_NBYTES
    for one in sets:
        views = [
            *(
                EmbeddedView(name=name, title=name, uri=_uri(one, name, data), psnr=one.psnrs.get(name))
                for name, data in one.views.items()
            ),
            EmbeddedView(
                name="difference",
                title=one.difference_title,
                uri=_uri(one, "difference", one.difference),
                is_difference=True,
            ),
        ]
        nbytes = sum(map(len, one.views.values())) + len(one.difference)
        if nbytes > room:
            left_out.append(one.image)
            continue
        room -= nbytes
        small = max(one.width, one.height) < SMALL
        shown.append(
            EmbeddedSet(image=one.image, width=one.width, height=one.height, is_small=small, views=tuple(views))
        )
    return shown, left_out


def _uri(one: ImageSet, name: str, data: bytes) -> str:
    mime = next((mime for magic, mime in _MAGIC.items() if data.startswith(magic)), None)
    if mime is None:
        raise ImageError(f"image '{name}' of {one.image} in the report is not a PNG, JPEG or WebP file.")
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
