"""Pair two checkpoints of one network, base and tuned, parameter by parameter."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lbm_lora.blocks import DeltaSums, Workspace, is_finite, subtract
from lbm_lora.checkpoint.kinds import kind_of
from lbm_lora.checkpoint.reader import Component
from lbm_lora.checkpoint.spec import TensorSpec
from lbm_lora.errors import Option, PairingError, listing
from lbm_lora.naming import ParamName


@dataclass(frozen=True)
class ParamPair:
    """One parameter in both checkpoints, with the same shape."""

    name: ParamName
    base: TensorSpec
    tuned: TensorSpec


@dataclass(frozen=True)
class Pairing:
    """Base and tuned parameters with equal names and shapes, in the order of the tuned file's data."""

    base: Component
    tuned: Component
    pairs: tuple[ParamPair, ...]

    def read_delta(self, name: ParamName, workspace: Workspace | None = None) -> tuple[torch.Tensor, DeltaSums]:
        """Return tuned - base, subtracted in fp32 whatever the storage dtypes, and its sums.

        Args:
            workspace: provides the buffer for the delta; by default new memory is allocated.
        """
        base, tuned = self.base.read(name), self.tuned.read(name)
        shape = tuple(tuned.shape)
        delta = workspace.take(shape) if workspace else torch.empty(shape)
        sums = subtract(tuned, base, delta)
        if not math.isfinite(sums.squares):
            self._refuse_non_finite(name, base, tuned)
        return delta, sums

    def _refuse_non_finite(self, name: ParamName, base: torch.Tensor, tuned: torch.Tensor) -> None:
        for side, tensor, component in (("base", base, self.base), ("tuned", tuned, self.tuned)):
            count = int((~torch.isfinite(tensor.float())).sum())
            if count:
                # the run fails anyway, so there is time to find them all
                others = [p.name for p in self.pairs if p.name != name and not is_finite(component.read(p.name))]
                more = f" Other tensors with such values ({len(others)}): {listing(others)}." if others else ""
                raise PairingError(
                    f"{name}: {count:,} of {tensor.numel():,} {side} values in {component.path} are not finite."
                    f"{more} Repair the file, or leave the tensor out: ",
                    Option("exclude"),
                    f" '{name}'.",
                )
        if not is_finite(tuned.float() - base.float()):
            raise PairingError(
                f"{name}: tuned - base leaves the range of fp32. To leave it out: ", Option("exclude"), f" '{name}'."
            )

    def __iter__(self) -> Iterator[ParamPair]:
        return iter(self.pairs)


def pair(base: Component, tuned: Component, *, excluded: frozenset[ParamName] = frozenset()) -> Pairing:
    """Match the parameters of two components by name.

    Args:
        excluded: names that need not match; they are left out of the pairs.
    """
    for here, there, side in ((base, tuned, "base"), (tuned, base, "tuned")):
        alone = [name for name in here if name not in there and name not in excluded]
        if alone:
            raise PairingError(
                f"{len(alone)} of {len(here)} tensors are in the {side}, {here.path}, but not in {there.path}: "
                f"{listing(alone)}. {_kinds(base, tuned)}Is {there.path.name} a checkpoint of the same network? "
                "To leave them out: ",
                Option("exclude"),
                f" '{alone[0]}' and so on.",
            )
    names = [name for name in tuned if name not in excluded]
    unequal = [
        name
        for name in names
        if base.specs[name].shape != tuned.specs[name].shape
        or base.specs[name].is_floating != tuned.specs[name].is_floating
    ]
    if unequal:
        first, *others = unequal
        rest = f" Shapes also differ for {listing(others)}." if others else ""
        raise PairingError(
            f"{first}: base {base.specs[first]} in {base.path.name}, tuned {tuned.specs[first]} in {tuned.path.name}."
            f"{rest} Is this the checkpoint it was tuned from? To leave it out: ",
            Option("exclude"),
            f" '{first}'.",
        )
    return Pairing(base, tuned, tuple(ParamPair(name, base.specs[name], tuned.specs[name]) for name in names))


def _kinds(base: Component, tuned: Component) -> str:
    """What the two files are, where their keys tell that these are different things."""
    one, other = (kind_of(side.checkpoint.specs, side.checkpoint.metadata) for side in (base, tuned))
    if one is None or other is None or one == other:
        return ""
    return f"{base.path.name} is {one.name}, {tuned.path.name} {other.name}. "
