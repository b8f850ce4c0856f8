"""What the sections of a training file share."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of the sections: frozen, without unknown keys, infinities or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def nearest(word: str, known: Collection[str], *, what: str = "Known") -> str:
    """A hint for a word that is none of the known ones, whatever its case: the nearest, or else all of them."""
    lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f"Did you mean '{lower[near[0]]}'?" if near else f"{what}: {', '.join(known)}"


def check_shares(key: str, shares: tuple[float, ...], of: str, count: int) -> None:
    """Probabilities: one for each of `count` values, together 1.

    Args:
        key: of the probabilities, for errors.
        of: key of the values that they belong to.

    Raises:
        ValueError: there are more or fewer, or they do not add up to 1.
    """
    if len(shares) != count:
        raise ValueError(f"{key} has {len(shares)} values and {of} has {count}. Give one for each")
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{key} must add up to 1, not {sum(shares):g}")
