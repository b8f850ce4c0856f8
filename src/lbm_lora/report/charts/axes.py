"""The axes of the plots, on which values that cannot be drawn stand near an edge.

Errors and noise floors span decades and have logarithmic axes, on which 0 has no place; PSNRs may be infinite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lbm_lora.report.values import BANDS

Figure = dict[str, Any]
"""A part of a Plotly figure, as plain values."""


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis of shares: from 10^low to 10^high."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float], *, reach: bool = False) -> "Axis":
        """An axis with some air around the values that are positive and finite.

        Args:
            reach: go up to the next bound of a band, so that the reader sees how far it is.
        """
        logs = [math.log10(value) for value in values if 0 < value < math.inf] or [-2.0, 0.0]
        bounds = [math.log10(bound) for _, bound, _ in BANDS if bound < math.inf]
        low, high = min(logs), max(logs)
        if reach:
            high = max(high, next((bound for bound in bounds if bound >= high), high))
        air = max(0.12, 0.06 * (high - low))
        return cls(low - air, high + air)

    def place(self, value: float) -> float:
        """Where a value is drawn: at an edge where it is 0, infinite or no number."""
        if 0 < value < math.inf:
            return value
        inset = 0.035 * (self.high - self.low)
        return 10 ** (self.low + inset if value == 0 else self.high - inset)

    def layout(self, title: str, *, bounds: bool = False) -> Figure:
        """Plotly's settings; with `bounds`, the bounds of the bands are among the ticks."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1.0, 2.0, 5.0) if self.high - self.low < 2 else (1.0, 5.0) if self.high - self.low < 3 else (1.0,)
        ticks = {round(step * 10.0**decade, 12) for decade in decades for step in steps}
        ticks |= {bound for _, bound, _ in BANDS if bound < math.inf} if bounds else set()
        shown = sorted(tick for tick in ticks if tick > 0 and self.low <= math.log10(tick) <= self.high)
        return {
            "type": "log",
            "range": [self.low, self.high],
            "tickvals": shown,
            "ticktext": [_tick(tick) for tick in shown],
            "title": {"text": title},
        }


@dataclass(frozen=True)
class Decibels:
    """An axis of PSNRs: its ends, and where infinite ones stand (infinity where there are none)."""

    low: float
    high: float
    top: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Decibels":
        """An axis with some air around the values that are finite."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        air = max(1.0, 0.06 * (max(finite) - min(finite)))
        low, high = min(finite) - air, max(finite) + air
        return cls(low, high + 2 * air, high + air) if math.inf in values else cls(low, high, math.inf)

    def place(self, value: float) -> float:
        """Where a PSNR is drawn."""
        return min(value, self.top)

    def layout(self, title: str) -> Figure:
        """Plotly's settings."""
        return {"title": {"text": title}, "range": [self.low, self.high]}


def _tick(tick: float) -> str:
    """`5 %`, `0.05 %`, `1e-05 %`: the number as short as it can be."""
    value = 100 * tick
    return f"{value:,.0f} %" if value >= 1000 else f"{value:.3g} %"
