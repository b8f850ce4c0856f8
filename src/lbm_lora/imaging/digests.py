"""Identify images by their pixels: those that a measurement used, and those that cannot be read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from lbm_lora.errors import ImageError, listing
from lbm_lora.imaging.image_file import read_image

PACKED_MOST = 512
"""Most image digests in a header: 6.7 kB."""

_DIGITS = 12
_NAMED = 50


@dataclass(frozen=True, kw_only=True)
class ImageDigests:
    """Digests that identify images by their pixels, whatever their file names and compression.

    Attributes:
        together: 32 hexadecimal digits over the pixels and sizes of all, in their order.
        each: 12 hexadecimal digits of each image.
    """

    together: str
    each: tuple[str, ...]


def digests_of(paths: Sequence[Path]) -> ImageDigests:
    """Decode every image once."""
    together = xxhash.xxh3_128()
    each: list[str] = []
    broken: list[tuple[Path, ImageError]] = []
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            broken.append((path, error))
            continue
        size, pixels = f"{image.size}\n".encode(), image.tobytes()
        together.update(size)
        together.update(pixels)
        alone = xxhash.xxh3_128(size)
        alone.update(pixels)
        each.append(alone.hexdigest()[:_DIGITS])
    if len(broken) == 1:
        raise broken[0][1]
    if broken:
        names = listing((path.name for path, _ in broken), limit=_NAMED)
        raise ImageError(
            f"{len(broken)} of {len(paths)} images cannot be read: {names}. Repair or remove them. "
            f"The first: {broken[0][1]}"
        )
    return ImageDigests(together=together.hexdigest(), each=tuple(each))


def packed(digests: Iterable[str]) -> str:
    """Pack the first `PACKED_MOST` digests into one text."""
    return " ".join(list(digests)[:PACKED_MOST])


def unpacked(text: object) -> frozenset[str]:
    """Unpack the text of `packed`; empty if a header holds something else."""
    return frozenset(text.split()) if isinstance(text, str) else frozenset()
