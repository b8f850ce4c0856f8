"""How much rank a matrix gets."""

from dataclasses import dataclass

from lbm_lora.errors import InputError, Option
from lbm_lora.factorize.matrix import rank_bound

FULL_RANK = 9999
"""The documented idiom for "as high as the matrix allows"."""


@dataclass(frozen=True, kw_only=True)
class FixedRank:
    """One rank for linear weights and one for convs, each capped by the matrix."""

    linear: int = 32
    conv: int = 16

    def __post_init__(self) -> None:
        for name, value in (("rank", self.linear), ("conv_rank", self.conv)):
            if value < 1:
                raise InputError(
                    f"{name} is {value}: a rank is at least 1. To leave layers out: ", Option("exclude"), " PATTERN."
                )

    def rank_of(self, shape: tuple[int, ...]) -> int:
        """The rank that a weight of this shape is stored with."""
        return min(self.conv if len(shape) == 4 else self.linear, rank_bound(shape))
