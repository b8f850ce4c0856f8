"""Scales by block as diffusers has them: `{"down": 0.5, "mid": 1, "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1]}}`.

A number holds for a block with all of its layers. A list has a number for each layer of a block: that of
`up_blocks.1.attentions.2`, its resnet `up_blocks.1.resnets.2` included. Whatever is not named keeps a scale of 1. An
outer `{"unet": ...}` is taken off.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from lbm_lora.adapter import LoraScale
from lbm_lora.errors import ConfigError, Option

BlockScales = Mapping[str, object]
"""A scale for each block; see this module."""

_FORM = (
    'Give {"down": 0.5, "mid": 1, "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1]}}, or a text such as '
    "'1,down_blocks=0.5,attn1=0'."
)
_SIDES = {"down": "down_blocks", "up": "up_blocks"}


def scale_of_blocks(scales: BlockScales) -> LoraScale:
    """Return scales by block as a scale by layer.

    Raises:
        ConfigError: an unknown block, or a value that is not a number.
    """
    inner = scales.get("unet")
    if len(scales) == 1 and isinstance(inner, Mapping):
        return scale_of_blocks(inner)
    if len(scales) == 1 and isinstance(inner, int | float):
        return LoraScale.parse(inner)
    return LoraScale(parts=tuple(part for name, value in scales.items() for part in _of_side(name, value)))


def _of_side(name: str, value: object) -> Iterator[tuple[str, float]]:
    if name == "mid":
        yield "mid_block.", _number(value[0] if isinstance(value, Sequence) and len(value) == 1 else value)
    elif name not in _SIDES:
        raise ConfigError(Option("adapter_weights"), f": '{name}' is not a block. {_FORM}")
    elif isinstance(value, Mapping):
        for block, scale in value.items():
            yield from _of_block(_SIDES[name], str(block), scale)
    else:
        yield f"{_SIDES[name]}.", _number(value)


def _of_block(side: str, block: str, value: object) -> Iterator[tuple[str, float]]:
    found = re.fullmatch(r"block_(\d+)", block)
    if found is None:
        raise ConfigError(Option("adapter_weights"), f": '{block}' is not a block. {_FORM}")
    if isinstance(value, Sequence) and not isinstance(value, str):
        for layer, scale in enumerate(value):
            yield rf"re:^{side}\.{found[1]}\.\w+\.{layer}\.", _number(scale)
    else:
        yield f"{side}.{found[1]}.", _number(value)


def _number(value: object) -> float:
    if isinstance(value, int | float):
        return LoraScale.parse(value).default
    raise ConfigError(Option("adapter_weights"), f": {value!r} is not a number. {_FORM}")
