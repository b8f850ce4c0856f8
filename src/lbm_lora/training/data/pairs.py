"""Identify pairs: which part is which, whether they belong together, and where their bytes are.

Only the header of each image is read, for its size.
"""

from dataclasses import dataclass

from lbm_lora.errors import ImageError
from lbm_lora.imaging.encoded import Size, encoded_size
from lbm_lora.shards.samples import Found, Part, Skipped

_HEAD = 1 << 16  # bytes; enough for the header of almost every image


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Which parts of a sample are the source, the target and the mask.

    The extension may differ: `source.jpg` also matches a `source.png` if there is no `source.jpg`.
    """

    source: str = "source.jpg"
    target: str = "target.jpg"
    mask: str | None = None
    mask_optional: bool = False
    """Whether a sample without a mask is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One usable pair."""

    key: str
    source: Part
    target: Part
    mask: Part | None
    size: Size
    """Size of the source image, upright, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The bytes of one pair, as stored in its files."""

    key: str
    source: bytes
    target: bytes
    mask: bytes | None
    size: Size
    """Size of the source image, upright, in pixels."""


def record_of(found: Found, keys: Keys) -> Record | Skipped:
    """Return the pair of one key, or why there is none."""
    if found.problem:
        return Skipped(found.key, found.problem)
    try:
        source, target = found.pick(keys.source), found.pick(keys.target)
        mask = found.pick(keys.mask) if keys.mask and _needs_mask(found, keys) else None
        size = _header_size(source, "source")
        for role, part in (("target", target), ("mask", mask)):
            if part is not None and not same_shape(size, other := _header_size(part, role)):
                reason = f"source {size[0]}x{size[1]}, {role} {other[0]}x{other[1]}: the shapes differ"
                return Skipped(found.key, reason)
    except ImageError as error:
        return Skipped(found.key, str(error))
    return Record(key=found.key, source=source, target=target, mask=mask, size=size)


def same_shape(one: Size, other: Size) -> bool:
    """Return whether aspect ratios are equal, within the rounding of a side to whole pixels (and 1 %)."""
    short = min(*one, *other)
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= 0.01 + 1 / short


def _header_size(part: Part, role: str) -> Size:
    """Read (width, height) of an image, upright, from its first bytes.

    Raises:
        ImageError: it is not a readable image.
    """
    for limit in (_HEAD, part.nbytes):  # profiles and previews may come first; some formats end with the size
        try:
            return encoded_size(part.read(limit))
        except ImageError as error:
            if limit >= part.nbytes:
                raise ImageError(f"{role}: {error}") from None
    raise AssertionError("the last attempt returns or raises")


def _needs_mask(found: Found, keys: Keys) -> bool:
    role = (keys.mask or "").rpartition(".")[0]
    return not keys.mask_optional or any(name.rpartition(".")[0] == role for name in found.parts)
