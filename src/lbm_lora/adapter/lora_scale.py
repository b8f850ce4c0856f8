"""The user's run-time scale of a LoRA: one number, or several by layer."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from lbm_lora.errors import ConfigError, Option
from lbm_lora.naming import DENOISER_PREFIX, ParamName, select

MOST = 1e6
"""Largest absolute value of a scale: products with it, and their squares, stay within fp32."""

_FORM = "Give a number, or numbers by layer such as 0.8,down_blocks=0.5,attn1=0."


@dataclass(frozen=True)
class LoraScale:
    """A scale, and exceptions by pattern: `0.8,down_blocks=0.5,attn1=0`.

    Attributes:
        default: scale of parameters that no pattern matches; may be negative.
        parts: (pattern, scale), see `lbm_lora.naming`; where several patterns match a parameter, the last one counts.
    """

    default: float = 1.0
    parts: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, value: "str | float | LoraScale") -> "LoraScale":
        """Return the scale that a user wrote."""
        if isinstance(value, LoraScale):
            return value
        if not isinstance(value, str):
            return cls(_number(str(value), str(value)))
        default, parts = 1.0, list[tuple[str, float]]()
        for index, word in enumerate(value.split(",")):
            pattern, sign, number = word.strip().rpartition("=")
            if sign and pattern:
                parts.append((pattern, _number(number, value)))
            elif index == 0 and not sign:
                default = _number(word, value)
            else:
                raise ConfigError(Option("lora_scale"), f" '{value}': '{word.strip()}' has no pattern. {_FORM}")
        return cls(default, tuple(parts))

    @property
    def is_uniform(self) -> bool:
        return not self.parts

    def by_param(self, names: Collection[ParamName]) -> dict[ParamName, float]:
        """Return the scale of each parameter."""
        scales = dict.fromkeys(names, self.default)
        for pattern, scale in self.parts:
            for name in select(names, [pattern], prefix=DENOISER_PREFIX, params=True):
                scales[ParamName(name)] = scale
        return scales

    def times(self, factor: float) -> "LoraScale":
        """Return the scale multiplied by a number, everywhere."""
        return LoraScale(factor * self.default, tuple((pattern, factor * scale) for pattern, scale in self.parts))

    @cached_property
    def text(self) -> str:
        """As a user writes it."""
        return ",".join([_spelled(self.default), *(f"{pattern}={_spelled(scale)}" for pattern, scale in self.parts)])

    @property
    def plain(self) -> float | str:
        """A number if it is uniform, else its text: for records and results."""
        return self.default if self.is_uniform else self.text


def _spelled(number: float) -> str:
    """The shortest text that gives the same number."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(Option("lora_scale"), f" '{whole}': '{text}' is not a number. {_FORM}") from None
    if not math.isfinite(number):
        raise ConfigError(Option("lora_scale"), f" must be finite, got {whole}.")
    if abs(number) > MOST:
        raise ConfigError(Option("lora_scale"), f" must be between -{MOST:g} and {MOST:g}, got {whole}.")
    return number
