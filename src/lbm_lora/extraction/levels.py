"""Survey in levels: all deltas at low ranks first, then again at higher ones those that use what they have.

A size limit lets any delta have several times the mean rank, since nobody knows beforehand which ones need it. Each
rank costs time, and with statistics most deltas use few. Deltas that get more ranks leave fewer bytes to all others, so
no other delta uses more than before.

Plain SVD, to which LoRAs are compared, has only the first level: nearly all of its deltas use all ranks that they get,
and more of them would have fewer bits each, and gain little.
"""

from collections.abc import Sequence

from lbm_lora.extraction.plan import Action, Plan
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import ParamName
from lbm_lora.ranks import LEAST_CAP, SMALL_SIDE, Choice

_FIRST_SHARE = 4  # of its highest rank: what a delta gets in the first level
_USED = 0.75  # of the ranks that a delta has: one that uses more gets twice as many


def first_level(plan: Plan) -> Plan:
    """Return the plan at the ranks of the first level, from one with the highest rank of each delta."""
    caps: dict[ParamName, int] = {}
    for item in plan.of(Action.DECOMPOSE):
        highest = item.rank or 1
        few = max(LEAST_CAP, -(-highest // _FIRST_SHARE))
        caps[item.name] = highest if rank_bound(item.shape) <= SMALL_SIDE else min(highest, few)
    return plan.with_caps(caps)


def more_ranks(plan: Plan, surveyed: Plan, choices: Sequence[Choice]) -> dict[ParamName, int]:
    """Return the deltas that should be surveyed again, with their new highest ranks; nothing if all have enough.

    Args:
        plan: plan with the highest rank of each delta.
        surveyed: the same with the ranks that were surveyed.
        choices: what would be chosen from these.
    """
    found: dict[ParamName, int] = {}
    for item, allowed in zip(surveyed.of(Action.DECOMPOSE), plan.of(Action.DECOMPOSE), strict=True):
        rank, highest = item.rank or 1, allowed.rank or 1
        if rank < highest and any(_needs_more(choice, item.name, rank) for choice in choices):
            found[item.name] = min(2 * rank, highest)
    return found


def _needs_more(choice: Choice, name: ParamName, rank: int) -> bool:
    """Whether a delta uses nearly all ranks that it has, or is stored dense, which more ranks may replace."""
    used = choice.highest_rank(name)
    return used is None or used > _USED * rank
