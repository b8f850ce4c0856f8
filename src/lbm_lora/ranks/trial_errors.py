"""Errors that a run of a LoRA has shown."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrialErrors:
    """Relative errors of the output of base + LoRA, at inputs that no calibration has seen.

    Attributes:
        typical: weighted geometric mean over inputs of the calibration's kind.
        low, high: 80 % of such inputs lie between these.
        shifted: geometric mean over inputs unlike the calibration's; None if there are none.
    """

    typical: float
    low: float
    high: float
    shifted: float | None = None
