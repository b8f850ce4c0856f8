"""The base of a merged LoRA: that of all of them, or the first of a chain base -> tuned -> further tuned.

An extraction records the checkpoint that it starts from and the one that it leads to. A LoRA made on that tuned
checkpoint starts where the extraction ends, so both together start at the extraction's base.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lbm_lora.adapter import Adapter
from lbm_lora.combine.products import Summand
from lbm_lora.errors import Option, WrongBaseError, listing
from lbm_lora.progress import warn

_SHOWN = 8  # digits of a fingerprint in messages


@dataclass(frozen=True, kw_only=True)
class MergedBase:
    """What a merged LoRA starts from and leads to.

    Attributes:
        fingerprint, tensors: of the base; empty if no LoRA records its base.
        tuned: fingerprint of the checkpoint that it leads to; empty if there is none.
        labels: the LoRAs of a chain, from the base on; empty if all have one base.
    """

    fingerprint: str
    tensors: str
    tuned: str
    labels: tuple[str, ...] = ()


def merged_base(summands: Sequence[Summand], *, allow_other_base: bool = False) -> MergedBase:
    """Return the one base of LoRAs; their order does not matter. One without a fingerprint gives a warning.

    Args:
        allow_other_base: warn instead of failing, and keep the base of the first LoRA that records one.
    """
    adapters = [one.adapter for one in summands]
    for adapter in adapters:
        if not adapter.metadata.base_fingerprint:
            warn(f"{adapter.label} does not say which base it was made from, so its base cannot be checked.")
    known = [adapter for adapter in adapters if adapter.metadata.base_fingerprint]
    if not known:
        return MergedBase(fingerprint="", tensors="", tuned="")
    chain = _chain(known)
    if chain is None:
        _refuse(known, allow_other_base=allow_other_base)
        return MergedBase(fingerprint=_base(known[0]), tensors=known[0].metadata.base_tensors, tuned="")
    is_complete = len(known) == len(adapters) == len(chain) and all(_is_unscaled(one) for one in summands)
    return MergedBase(
        fingerprint=_base(chain[0]),
        tensors=chain[0].metadata.base_tensors,
        tuned=chain[-1].metadata.tuned_fingerprint if is_complete else "",
        labels=tuple(adapter.label for adapter in chain) if len({_base(one) for one in known}) > 1 else (),
    )


def _chain(adapters: Sequence[Adapter]) -> list[Adapter] | None:
    """Return one LoRA for each step from the common base on; None if there are several bases that no steps connect."""
    bases = {_base(adapter) for adapter in adapters}
    steps = {
        _base(adapter): adapter
        for adapter in reversed(adapters)
        if adapter.metadata.tuned_fingerprint in bases - {_base(adapter)}
    }
    led_to = {adapter.metadata.tuned_fingerprint for adapter in steps.values()}
    starts = [base for base in bases if base not in led_to]
    if len(starts) != 1:
        return None
    chain: list[Adapter] = []
    base, left = starts[0], set(bases)
    while base in steps and base in left:
        left.remove(base)
        chain.append(steps[base])
        base = steps[base].metadata.tuned_fingerprint
    if left != {base}:
        return None
    return [*chain, next(adapter for adapter in adapters if _base(adapter) == base)]


def _refuse(adapters: Sequence[Adapter], *, allow_other_base: bool) -> None:
    """Name the LoRA of each base; where it is a step, also what it leads to."""
    first: dict[str, Adapter] = {}
    for adapter in adapters:
        first.setdefault(_base(adapter), adapter)
    found = listing(f"{adapter.label} from {base[:_SHOWN]}{_leads_to(adapter)}" for base, adapter in first.items())
    problem = (
        f"the LoRAs were made from different bases: {found}. A LoRA that was made on a tuned checkpoint merges with "
        "the extraction of that checkpoint."
    )
    if not allow_other_base:
        raise WrongBaseError(f"{problem} To merge them all the same: ", Option("allow_other_base"), ".")
    warn(problem)


def _leads_to(adapter: Adapter) -> str:
    tuned = adapter.metadata.tuned_fingerprint
    return f" to {tuned[:_SHOWN]}" if tuned else ""


def _base(adapter: Adapter) -> str:
    return adapter.metadata.base_fingerprint


def _is_unscaled(summand: Summand) -> bool:
    return all(scale == 1 for scale in summand.scales.values())
