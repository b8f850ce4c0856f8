"""Carry out a plan: read, subtract, factorize, round, measure; a few tensors at a time, in constant memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import xxhash
from torch import Tensor

from lbm_lora.adapter import LedgerRow, LoraModule, Status
from lbm_lora.blocks import DeltaSums, Workspace, absolutes, energy, storage_noise
from lbm_lora.checkpoint import Fingerprint, FingerprintBuilder
from lbm_lora.errors import InputError
from lbm_lora.extract.plan import Action, Plan, PlanItem
from lbm_lora.factorize import (
    Factors,
    Measure,
    down_shape,
    factorize_ranks,
    measure_delta,
    rounded,
    to_matrix,
    up_shape,
    with_error,
)
from lbm_lora.naming import ParamName, module_of
from lbm_lora.parallel import ordered_map


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Attributes:
    dtype: of the stored factors and dense deltas.
    min_diff: a delta whose largest absolute value is below this is left out, with that reason.
    device: where the decomposition runs.
    """

    dtype: torch.dtype = torch.bfloat16
    min_diff: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Outcome:
    """What one tensor became: its ledger row, and its lora module or its dense delta where it is stored."""

    row: LedgerRow
    module: LoraModule | None = None
    dense: Tensor | None = None


class Extraction:
    """One pass over both files. Iterate it to the end, then read the fingerprints.

    Args:
        plans: one for each adapter that is to come out; they differ in their ranks alone. A matrix is decomposed once
            for all of them, so a lower rank may differ in its last digits from that of a run of its own.
    """

    def __init__(self, plans: Sequence[Plan], settings: Settings) -> None:
        self._plans = plans
        self._settings = settings
        self._pairing = plans[0].pairing
        self._base, self._tuned = FingerprintBuilder(), FingerprintBuilder()
        self._workspace = Workspace()

    def __len__(self) -> int:
        return len(self._plans[0].items)

    def __iter__(self) -> Iterator[tuple[Outcome, ...]]:
        """The outcomes of one tensor, one for each plan, tensor by tensor."""
        return ordered_map(self._read_and_decide, zip(*(plan.items for plan in self._plans), strict=True))

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        """Of base and tuned, after the pass."""
        return self._base.build(), self._tuned.build()

    def _read_and_decide(self, items: tuple[PlanItem, ...]) -> tuple[Outcome, ...]:
        name = items[0].name
        for component, builder in ((self._pairing.base, self._base), (self._pairing.tuned, self._tuned)):
            if name in component:
                builder.add(name, component.read(name))
        whole = self._outcome(items[0])
        if isinstance(whole, Outcome):
            return (whole,) * len(items)
        delta, found = whole
        try:
            factors = self._decompose(name, [item.rank or 1 for item in items], delta, found.delta_sq)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        pairs = zip(items, factors, strict=True)
        return tuple(_low_rank(item, made, with_error(found, delta, made)) for item, made in pairs)

    def _outcome(self, item: PlanItem) -> Outcome | tuple[Tensor, Measure]:
        """What a tensor becomes whatever the ranks; else the delta that is to be decomposed, and its measure."""
        base, tuned, name = self._pairing.base, self._pairing.tuned, item.name
        if name not in base or name not in tuned or base.specs[name].shape != tuned.specs[name].shape:
            return Outcome(_row(item, Status.EXCLUDED, item.reason, Measure()))
        delta, sums = self._delta(item)
        found = measure_delta(delta.numel(), sums)
        if found.delta_abs == 0:
            return Outcome(_row(item, Status.UNCHANGED, "equal in base and tuned", found))
        if not tuned.specs[name].is_floating:  # the change of a counter is no weight's
            return Outcome(_row(item, Status.EXCLUDED, item.reason, Measure()))
        if item.action is Action.EXCLUDE:
            return Outcome(_row(item, Status.EXCLUDED, item.reason, found))
        if self._settings.min_diff and float(delta.abs().max()) < self._settings.min_diff:
            reason = f"largest change below --min_diff {self._settings.min_diff:g}"
            return Outcome(_row(item, Status.EXCLUDED, reason, found))
        if item.action is Action.DECOMPOSE:
            return delta, found
        try:
            stored = rounded(delta, self._settings.dtype)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        return Outcome(_row(item, Status.DENSE, item.reason, with_error(found, delta, stored.float())), dense=stored)

    def _delta(self, item: PlanItem) -> tuple[Tensor, DeltaSums]:
        if item.action is not Action.EXCLUDE:
            return self._pairing.read_delta(item.name, self._workspace)
        # what is left out may hold anything; values that are not finite count as unchanged
        base, tuned = self._pairing.base.read(item.name), self._pairing.tuned.read(item.name)
        delta = _finite(tuned.float() - base.float())
        noise = storage_noise(_finite(tuned)) if delta.any() else 0.0
        return delta, DeltaSums(energy(delta), absolutes(delta), noise)

    def _decompose(self, name: ParamName, ranks: Sequence[int], delta: Tensor, squared_norm: float) -> list[Factors]:
        matrix, dtype = to_matrix(delta).to(self._settings.device), self._settings.dtype
        made = factorize_ranks(matrix, ranks, dtype, seed=seed_of(name), squared_norm=squared_norm)
        return [Factors(factors.up.cpu(), factors.down.cpu()) for factors in made]


def _low_rank(item: PlanItem, factors: Factors, measured: Measure) -> Outcome:
    return Outcome(_row(item, Status.LORA, item.reason, measured), module=_module(item, factors))


def _module(item: PlanItem, factors: Factors) -> LoraModule:
    """The factors in the shapes of a file, with scaling 1."""
    down = factors.down.reshape(down_shape(item.shape, factors.rank))
    up = factors.up.reshape(up_shape(item.shape, factors.rank))
    return LoraModule(module_of(item.name), down, up, alpha=float(factors.rank))


def seed_of(name: ParamName) -> int:
    """The seed of a tensor's random start: of its name alone, so that order and company do not matter."""
    return xxhash.xxh3_64_intdigest(name.encode()) >> 1


def _finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)


def _row(item: PlanItem, status: Status, reason: str, measured: Measure) -> LedgerRow:
    rank = item.rank if status is Status.LORA else None
    return LedgerRow(item.name, status, reason, item.shape, rank, measured)
