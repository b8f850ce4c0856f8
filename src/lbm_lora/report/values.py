"""What the values of a report are made of: numbers that JSON can hold, and the documented bands of an error.

The values themselves (`weights`, `outputs`, `document`) are frozen dataclasses of pydantic, made of keyword arguments.
Types are checked when a value is made or read, and nothing is converted, with one exception: JSON has no infinity, so
there, and only there, numbers that are not finite are the strings `inf`, `-inf` and `nan`.
"""

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, PlainSerializer

STRICT = ConfigDict(strict=True, populate_by_name=True)
"""The settings of every value of a report."""

NonFinite = Literal["inf", "-inf", "nan"]
Band = Literal["excellent", "good", "poor", "noise"]


def _read(value: object, info: Any) -> object:
    """Read a JSON word for a non-finite number as that number; `info` is pydantic's `ValidationInfo`."""
    if info.mode == "json" and isinstance(value, str) and value in get_args(NonFinite):
        return float(value)
    return value


def _spell(value: float) -> float | NonFinite:
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


Float = Annotated[float, BeforeValidator(_read), PlainSerializer(_spell, when_used="json")]
"""A float that need not be finite."""

BANDS: tuple[tuple[Band, float, str], ...] = (
    ("excellent", 0.05, "below 5 %"),
    ("good", 0.50, "5 to 50 %, minor artifacts"),
    ("poor", 1.00, "50 to 100 %, noticeable degradation"),
    ("noise", math.inf, "above 100 %, more noise than signal: increase the rank, or is it a LoRA of another model?"),
)
"""The documented bands of a relative error: name, upper bound, meaning. 100 % itself is not yet above 100 %."""


def band_of(relative_error: float) -> Band:
    """The name of the band that a relative error falls into."""
    for name, bound, _ in BANDS:
        if relative_error < bound or relative_error == bound == 1:
            return name
    return "noise"
