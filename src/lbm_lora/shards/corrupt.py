"""Samples that cannot be used: which, why, and how many are too many."""

from collections.abc import Sequence
from dataclasses import dataclass

from lbm_lora.errors import listing


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that cannot be used, and why."""

    key: str
    reason: str


def complaint(where: str, skipped: Sequence[Skipped], total: int, max_corrupt: float) -> str:
    """What to say of a data set of which too much cannot be used, or all of it; empty where it is good enough.

    Args:
        where: the data set.
        total: samples that were found, usable or not.
        max_corrupt: share of them that may be corrupt.
    """
    if not skipped or (len(skipped) <= max_corrupt * total and len(skipped) < total):
        return ""
    return f"{where}: {said_of(skipped, total)}, and max_corrupt is {100 * max_corrupt:g} %."


def said_of(skipped: Sequence[Skipped], total: int) -> str:
    """How many samples cannot be used, and the first of them."""
    share = 100 * len(skipped) / max(total, 1)
    named = listing((f"{item.key} ({item.reason})" for item in skipped), limit=3)
    return f"{len(skipped)} of {total} samples cannot be used ({share:.1f} %): {named}"
