"""Formats of other programs: read into an `Adapter`, and written from one."""

from collections.abc import Collection, Mapping

from lbm_lora.adapter.formats import comfyui, diffusers, kohya, peft
from lbm_lora.adapter.formats.codec import WISHES, Codec, Saved, Source, Wishes
from lbm_lora.adapter.metadata import EXPORT_KEY
from lbm_lora.choices import FormatName

CODECS: tuple[Codec, ...] = (
    kohya.LYCORIS, kohya.DIFFUSERS_NAMES, kohya.KOHYA, comfyui.CODEC, peft.CODEC, diffusers.CODEC,
)  # fmt: skip
"""In the order in which they are asked: the first that matches reads a file."""


def codec_of(keys: Collection[str], header: Mapping[str, str]) -> Codec | None:
    """Return the codec of a file with these keys and this header; None if no foreign format matches.

    A file that we wrote says in its header which format it has.
    """
    ours = header.get(EXPORT_KEY, "").partition(" ")[0]
    matching = [codec for codec in CODECS if codec.matches(keys, header)]
    return next((codec for codec in matching if codec.name == ours), matching[0] if matching else None)


def codec_named(name: FormatName) -> Codec:
    return next(codec for codec in CODECS if codec.name == name)
