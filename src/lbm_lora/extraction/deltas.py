"""Handle a tensor before its rank is known: read, subtract, measure, and store it dense or leave it out."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lbm_lora.adapter import LedgerRow, LoraModule, Outcome, Status
from lbm_lora.blocks import DeltaSums, Workspace, absolutes, energy, storage_noise
from lbm_lora.checkpoint import Fingerprint, FingerprintBuilder, Pairing
from lbm_lora.errors import InputError
from lbm_lora.extraction.plan import Action, PlanItem
from lbm_lora.factorize import (
    PACKED,
    Factors,
    Grid,
    Measure,
    dense_dtype,
    down_shape,
    measure_delta,
    nearest,
    rounded,
    up_shape,
    vector_of,
    with_error,
)
from lbm_lora.naming import module_of


@dataclass(frozen=True, kw_only=True)
class DeltaSettings:
    """Settings for computing and storing deltas.

    Attributes:
        dtype: dtype of stored factors and dense deltas; with int8, dense deltas are fp16, with `PACKED` both have bits
            of their own.
        min_diff: at least 0; a delta whose largest absolute value is below this is left out, with that reason.
    """

    dtype: torch.dtype = torch.bfloat16
    min_diff: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Delta:
    """A delta to decompose.

    Attributes:
        values: fp32, in the parameter's shape; valid until its thread reads the next one.
    """

    values: Tensor
    measure: Measure


class DeltaReader:
    """Reader of a pairing's deltas, a few at a time in threads."""

    def __init__(self, pairing: Pairing, settings: DeltaSettings) -> None:
        self._pairing = pairing
        self._settings = settings
        self._base, self._tuned = FingerprintBuilder(), FingerprintBuilder()
        self._workspace = Workspace()

    def hash(self, item: PlanItem) -> None:
        """Add a tensor to the fingerprints of base and tuned."""
        for component, builder in ((self._pairing.base, self._base), (self._pairing.tuned, self._tuned)):
            if item.name in component:
                builder.add(item.name, component.read(item.name))

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        """Return those of base and tuned, once every tensor is hashed."""
        return self._base.build(), self._tuned.build()

    def read(self, item: PlanItem) -> Outcome | Delta:
        """Return a tensor's outcome if it does not depend on ranks or bits, else the delta to decompose or to round."""
        base, tuned, name = self._pairing.base, self._pairing.tuned, item.name
        if name not in base or name not in tuned or base.specs[name].shape != tuned.specs[name].shape:
            return left_out(item, item.reason, Measure())
        delta, sums = self._delta(item)
        found = measure_delta(delta.numel(), sums)
        if found.delta_abs == 0:
            return Outcome(LedgerRow(name, Status.UNCHANGED, "equal in base and tuned", item.shape, None, found))
        if not tuned.specs[name].is_floating:  # a counter's change is not a weight's
            return left_out(item, item.reason, Measure())
        if item.action is Action.EXCLUDE:
            return left_out(item, item.reason, found)
        if self._settings.min_diff and float(delta.abs().max()) < self._settings.min_diff:
            return left_out(item, f"largest change below --min_diff {self._settings.min_diff:g}", found)
        if item.action is Action.DECOMPOSE or self._settings.dtype == PACKED:
            return Delta(delta, found)
        return self.dense(item, Delta(delta, found), item.reason)

    def dense(self, item: PlanItem, delta: Delta, reason: str) -> Outcome:
        """Return the outcome of a delta that is stored dense."""
        try:
            stored = rounded(delta.values, dense_dtype(self._settings.dtype))
        except InputError as error:
            raise InputError(f"{item.name}: ", *error.args) from None
        return Outcome(_dense_row(item, delta, reason, stored.float()), dense=stored)

    def rounded(
        self, item: PlanItem, delta: Delta, reason: str, width: int, variances: Tensor | None = None
    ) -> Outcome:
        """Return the outcome of a delta that a packed file stores dense.

        Args:
            variances: cost of an error in each value; None: all cost the same.
        """
        counts, unit = nearest(delta.values.flatten()[None], [width], variances=variances)
        grid = Grid((width,), unit)
        stored = vector_of(counts[0], grid).reshape(item.shape)
        return Outcome(_dense_row(item, delta, reason, stored), dense=stored, grid=grid)

    def _delta(self, item: PlanItem) -> tuple[Tensor, DeltaSums]:
        if item.action is not Action.EXCLUDE:
            return self._pairing.read_delta(item.name, self._workspace)
        # excluded tensors may hold anything; values that are not finite count as unchanged
        base, tuned = self._pairing.base.read(item.name), self._pairing.tuned.read(item.name)
        delta = _finite(tuned.float() - base.float())
        noise = storage_noise(_finite(tuned)) if delta.any() else 0.0
        return delta, DeltaSums(energy(delta), absolutes(delta), noise)


def _dense_row(item: PlanItem, delta: Delta, reason: str, stored: Tensor) -> LedgerRow:
    measured = with_error(delta.measure, delta.values, stored)
    return LedgerRow(item.name, Status.DENSE, reason, item.shape, None, measured)


def left_out(item: PlanItem, reason: str, measured: Measure) -> Outcome:
    """Return the outcome of a tensor that is left out of the file."""
    return Outcome(LedgerRow(item.name, Status.EXCLUDED, reason, item.shape, None, measured))


def low_rank(item: PlanItem, delta: Delta, factors: Factors, grid: Grid | None = None) -> Outcome:
    """Return the outcome of a decomposed delta."""
    measured = with_error(delta.measure, delta.values, factors)
    row = LedgerRow(item.name, Status.LORA, item.reason, item.shape, factors.rank, measured)
    return Outcome(row, module=lora_module(item, factors, grid))


def lora_module(item: PlanItem, factors: Factors, grid: Grid | None) -> LoraModule:
    """Return factors as a module: in the shapes of a file, with scaling 1, and their grid."""
    rank = factors.rank
    down = factors.down.reshape(down_shape(item.shape, rank))
    up = factors.up.reshape(up_shape(item.shape, rank))
    return LoraModule(module_of(item.name), down, up, alpha=float(rank), grid=grid)


def _finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)
