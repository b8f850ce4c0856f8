"""Fixed ranks for matrices."""

from dataclasses import dataclass

from lbm_lora.errors import InputError, Option
from lbm_lora.factorize.matrix import rank_bound

FULL_RANK = 9999
"""The documented value for "as high as the matrix allows"."""


@dataclass(frozen=True, kw_only=True)
class FixedRank:
    """One rank for linear weights and one for convs, each capped at the matrix's bound."""

    linear: int = 32
    conv: int = 16

    @classmethod
    def of(cls, linear: int, conv: int | None = None) -> "FixedRank":
        """A rank, and the conv rank that goes with it where none is given: half of it, rounded up; full stays full."""
        half = linear if linear >= FULL_RANK else (linear + 1) // 2
        return cls(linear=linear, conv=half if conv is None else conv)

    def __post_init__(self) -> None:
        for name, value in (("rank", self.linear), ("conv_rank", self.conv)):
            if value < 1:
                raise InputError(
                    f"{name} must be at least 1, got {value}. To leave layers out: ", Option("exclude", "PATTERN"), "."
                )

    def rank_of(self, shape: tuple[int, ...]) -> int:
        """Return the stored rank for a weight of this shape."""
        return min(self.conv if len(shape) == 4 else self.linear, rank_bound(shape))
