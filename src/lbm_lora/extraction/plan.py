"""Plan what to do with each tensor, from names and shapes alone, before any data is read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lbm_lora.checkpoint import Component, Pairing, TensorSpec, pair
from lbm_lora.errors import Option, PairingError
from lbm_lora.factorize import FixedRank, has_matrix_view
from lbm_lora.naming import ATTENTION, ModuleName, ParamName, leaf_of, left_out, module_of


class Action(StrEnum):
    """Action of the extraction on a delta."""

    DECOMPOSE = "decompose"
    KEEP_DENSE = "keep dense"
    EXCLUDE = "exclude"


@dataclass(frozen=True)
class PlanItem:
    """Planned action for one tensor, with the reason in words and the stored rank if it is decomposed."""

    name: ParamName
    shape: tuple[int, ...]
    action: Action
    rank: int | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """Planned actions for every tensor of the tuned component, in the order of its file.

    A tensor that is excluded by name may be missing from the base or have another shape there.
    """

    pairing: Pairing
    items: tuple[PlanItem, ...]

    def with_ranks(self, ranks: FixedRank) -> "Plan":
        """Return the same plan with other ranks."""
        return self.with_caps({item.name: ranks.rank_of(item.shape) for item in self.of(Action.DECOMPOSE)})

    def with_caps(self, caps: Mapping[ParamName, int]) -> "Plan":
        """Return the same plan with the highest rank that some deltas may get: every rank costs time."""
        items = (replace(item, rank=caps[item.name]) if item.name in caps else item for item in self.items)
        return replace(self, items=tuple(items))

    def only(self, names: Collection[ParamName]) -> "Plan":
        """Return the plan for these tensors alone."""
        return replace(self, items=tuple(item for item in self.items if item.name in names))

    def with_dense(self, modules: Mapping[ModuleName, str]) -> "Plan":
        """Return the same plan with the weights of some modules stored dense, for the given reason."""
        items = (
            replace(item, action=Action.KEEP_DENSE, rank=None, reason=modules[module_of(item.name)])
            if item.action is Action.DECOMPOSE and module_of(item.name) in modules
            else item
            for item in self.items
        )
        return replace(self, items=tuple(items))

    def of(self, action: Action) -> list[PlanItem]:
        return [item for item in self.items if item.action is action]

    def shapes(self) -> dict[ModuleName, tuple[int, ...]]:
        """Return the weight shapes of the modules to decompose."""
        return {module_of(item.name): item.shape for item in self.of(Action.DECOMPOSE)}

    def ranks(self) -> dict[ModuleName, int]:
        return {module_of(item.name): item.rank for item in self.of(Action.DECOMPOSE) if item.rank is not None}

    def dense(self) -> dict[ParamName, tuple[int, ...]]:
        return {item.name: item.shape for item in self.of(Action.KEEP_DENSE)}


COVERAGES: dict[str, tuple[str, ...]] = {
    "full": (),
    "attention": ATTENTION,
    "extended": (*ATTENTION, "ff.net", "proj_in", "proj_out"),
}
"""Patterns of the documented `--target_coverage`; none means every tensor."""


def plan_extraction(
    base: Component,
    tuned: Component,
    ranks: FixedRank | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_dense: bool = True,
) -> Plan:
    """Plan the extraction of `tuned - base`.

    Args:
        ranks: ranks of the lora modules; by default the documented ones. A rule may set others.
        include: patterns; if given, every other tensor is excluded.
        exclude: patterns; they take precedence over `include`.
        keep_dense: whether to store deltas without a matrix view (biases, norms).
    """
    names = list(dict.fromkeys([*tuned, *base]))
    reasons = left_out(names, include=include, exclude=exclude, prefix=tuned.prefix)
    if len(reasons) == len(names):
        raise PairingError(
            Option("include"),
            " and ",
            Option("exclude"),
            f" exclude all {len(names)} tensors of {tuned.path}. Change one of them.",
        )
    pairing, ranks = pair(base, tuned, excluded=frozenset(reasons)), ranks or FixedRank()
    specs = {**base.specs, **tuned.specs}
    items = [_item(name, specs[name], ranks, reasons.get(name), keep_dense) for name in names]
    return Plan(pairing, tuple(items))


def _item(name: ParamName, spec: TensorSpec, ranks: FixedRank, excluded: str | None, keep_dense: bool) -> PlanItem:
    action, rank = Action.EXCLUDE, None
    if excluded is not None:
        reason = excluded
    elif not spec.is_floating:
        reason = "not a floating point tensor"
    elif leaf_of(name) == "weight" and has_matrix_view(spec.shape):
        reason = "conv" if len(spec.shape) == 4 else "linear"
        action, rank = Action.DECOMPOSE, ranks.rank_of(spec.shape)
    elif not keep_dense:
        reason = "dense deltas are switched off"
    else:
        action, reason = Action.KEEP_DENSE, f"{len(spec.shape)}-dimensional"
    return PlanItem(name, spec.shape, action, rank, reason)
