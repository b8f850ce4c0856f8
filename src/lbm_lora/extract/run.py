"""Carry out a plan: read, subtract, factorize, round, measure; a few tensors at a time, in constant memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import xxhash
from torch import Tensor

from lbm_lora.adapter import LedgerRow, LoraModule, Status
from lbm_lora.checkpoint import Component, Fingerprint, FingerprintBuilder
from lbm_lora.errors import InputError
from lbm_lora.extract.plan import Action, Plan, PlanItem
from lbm_lora.factorize import (
    Factors,
    Measure,
    down_shape,
    factorize,
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
    """One pass over both files. Iterate it to the end, then read the fingerprints."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._plan = plan
        self._settings = settings
        self._base, self._tuned = FingerprintBuilder(), FingerprintBuilder()

    def __len__(self) -> int:
        return len(self._plan.items)

    def __iter__(self) -> Iterator[Outcome]:
        return ordered_map(self._read_and_decide, self._plan.items)

    def _read_and_decide(self, item: PlanItem) -> Outcome:
        for component, builder in ((self._plan.pairing.base, self._base), (self._plan.pairing.tuned, self._tuned)):
            if item.name in component:
                builder.add(item.name, component.read(item.name))
        return self._outcome(item)

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        """Of base and tuned, after the pass."""
        return self._base.build(), self._tuned.build()

    def _outcome(self, item: PlanItem) -> Outcome:
        delta, tuned = _delta(self._plan, item)
        if delta is None:
            return Outcome(_row(item, Status.EXCLUDED, item.reason, Measure()))
        found = measure_delta(delta, tuned)
        if found.delta_abs == 0:
            return Outcome(_row(item, Status.UNCHANGED, "equal in base and tuned", found))
        if not tuned.is_floating_point():  # the change of a counter is no weight's
            return Outcome(_row(item, Status.EXCLUDED, item.reason, Measure()))
        if item.action is Action.EXCLUDE:
            return Outcome(_row(item, Status.EXCLUDED, item.reason, found))
        if self._settings.min_diff and float(delta.abs().max()) < self._settings.min_diff:
            reason = f"largest change below --min_diff {self._settings.min_diff:g}"
            return Outcome(_row(item, Status.EXCLUDED, reason, found))
        try:
            if item.action is Action.KEEP_DENSE or item.rank is None:
                stored = rounded(delta, self._settings.dtype)
                measured = with_error(found, delta, stored.float())
                return Outcome(_row(item, Status.DENSE, item.reason, measured), dense=stored)
            factors = self._decompose(item, item.rank, delta)
        except InputError as error:
            raise InputError(f"{item.name}: {error}") from None
        measured = with_error(found, delta, factors)
        return Outcome(_row(item, Status.LORA, item.reason, measured), module=_module(item, factors))

    def _decompose(self, item: PlanItem, rank: int, delta: Tensor) -> Factors:
        matrix = to_matrix(delta).to(self._settings.device)
        factors = factorize(matrix, rank, self._settings.dtype, seed=seed_of(item.name))
        return Factors(factors.up.cpu(), factors.down.cpu())


def _module(item: PlanItem, factors: Factors) -> LoraModule:
    """The factors in the shapes of a file, with scaling 1."""
    down = factors.down.reshape(down_shape(item.shape, factors.rank))
    up = factors.up.reshape(up_shape(item.shape, factors.rank))
    return LoraModule(module_of(item.name), down, up, alpha=float(factors.rank))


def seed_of(name: ParamName) -> int:
    """The seed of a tensor's random start: of its name alone, so that order and company do not matter."""
    return xxhash.xxh3_64_intdigest(name.encode()) >> 1


def _delta(plan: Plan, item: PlanItem) -> tuple[Tensor | None, Tensor]:
    """The delta of an item and its tuned tensor; no delta where the two sides cannot be subtracted."""
    base, tuned = plan.pairing.base, plan.pairing.tuned
    comparable = (
        item.name in base and item.name in tuned and base.specs[item.name].shape == tuned.specs[item.name].shape
    )
    if not comparable:
        return None, torch.zeros(0)
    if item.action is Action.EXCLUDE:
        # what is left out may hold anything; values that are not finite count as unchanged
        return _finite(_subtract(base, tuned, item.name)), _finite(tuned.read(item.name))
    return plan.pairing.read_delta(item.name), tuned.read(item.name)


def _finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)


def _subtract(base: Component, tuned: Component, name: ParamName) -> Tensor:
    return tuned.read(name).float() - base.read(name).float()


def _row(item: PlanItem, status: Status, reason: str, measured: Measure) -> LedgerRow:
    rank = item.rank if status is Status.LORA else None
    return LedgerRow(item.name, status, reason, item.shape, rank, measured)
