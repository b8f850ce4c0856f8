"""Errors that a run of a LoRA has shown."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

SHIFTS: Mapping[str, str] = {
    "content": "with other content",
    "larger": "that are larger",
    "smaller": "that are smaller",
    "timesteps": "at other timesteps",
}
"""Map from the kinds of inputs that are unlike the calibration's to words for them. A LoRA's errors differ between them
by 10 dB and more, so that one number for all would be right for none."""


@dataclass(frozen=True, kw_only=True)
class TrialErrors:
    """Relative errors of the output of base + LoRA, at inputs that no calibration has seen.

    Attributes:
        typical: weighted geometric mean over inputs of the calibration's kind.
        low, high: 80 % of such inputs lie between these.
        shifted: geometric mean over inputs unlike the calibration's, by the kind of shift; see `SHIFTS`.
        shifted_within: 80 % of inputs of these kinds lie between these.
    """

    typical: float
    low: float
    high: float
    shifted: Mapping[str, float] = field(default_factory=dict[str, float])
    shifted_within: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def typical_shifted(self) -> float | None:
        """Geometric mean over the kinds of shift; None if there are none."""
        return math.prod(self.shifted.values()) ** (1 / len(self.shifted)) if self.shifted else None
