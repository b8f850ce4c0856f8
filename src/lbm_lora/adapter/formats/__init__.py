"""Formats of other programs: read into an `Adapter`, and written from one (layer L2)."""

from collections.abc import Collection, Mapping

from lbm_lora.adapter.formats import comfyui
from lbm_lora.adapter.formats.codec import Codec, Encoded, Parts, Source, Wishes
from lbm_lora.configs.values import FormatName

CODECS: tuple[Codec, ...] = (comfyui.CODEC,)
"""In the order in which they are asked: the first that matches reads a file."""


def codec_of(keys: Collection[str], header: Mapping[str, str]) -> Codec | None:
    """Return the codec of a file with these keys and this header; None if no foreign format matches."""
    return next((codec for codec in CODECS if codec.matches(keys, header)), None)


def codec_named(name: FormatName) -> Codec:
    """Return the codec of a foreign format."""
    return next(codec for codec in CODECS if codec.name == name)


__all__ = ["CODECS", "Codec", "Encoded", "Parts", "Source", "Wishes", "codec_named", "codec_of"]
