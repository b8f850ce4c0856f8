"""What makes a sample a pair, and where the bytes of a pair lie."""

from dataclasses import dataclass

from lbm_lora.imaging.encoded import Size
from lbm_lora.shards.parts import Part


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Which parts of a sample are the source, the target and the mask.

    The extension is not decisive: `source.jpg` also stands for a `source.png` where there is no `source.jpg`.
    """

    source: str = "source.jpg"
    target: str = "target.jpg"
    mask: str | None = None
    mask_optional: bool = False
    """A sample without the mask is used all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One usable pair."""

    key: str
    source: Part
    target: Part
    mask: Part | None
    size: Size
    """Of the source picture, upright."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The bytes of one pair, as its files have them."""

    key: str
    source: bytes
    target: bytes
    mask: bytes | None
    size: Size
    """Of the source picture, upright."""
