"""Rules for choosing the ranks of an adapter: a closed union of small values, each of which knows its needs.

A rule names the option that selects it (`option`), the adapters that it gives (`names`), the facts recorded in their
metadata (`facts`), the highest ranks that a survey must find for it (`caps`), and the choices that a survey alone can
make (`choices`). If only running a LoRA can check a rule's limit, `lbm_lora.ranks.trials` searches for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from lbm_lora.adapter import rank_bytes
from lbm_lora.factorize import PACKED, FixedRank, rank_bound
from lbm_lora.naming import ParamName
from lbm_lora.ranks.allocate import Choice, RankAllocator
from lbm_lora.ranks.allocate_widths import WidthAllocator

SMALL_SIDE = 192
"""Up to this short side all ranks of a matrix are found anyway."""
LEAST_CAP = 64
"""Ranks of any larger matrix that a survey finds, if there are as many."""

_PACKED_SHARE = 0.25  # of 16 bits: what a value takes on average
_ABOVE_UNIFORM = 4  # the most that one layer may get, in multiples of the uniform rank
_SHARE = 0.25  # of its bound that a rank may reach under an error limit: above it the dense delta is nearly as small

Shapes = Mapping[ParamName, tuple[int, ...]]
"""Shapes of the weights to decompose."""


@dataclass(frozen=True, kw_only=True)
class FixedRanks:
    """One rank for linear layers and one for convs; several pairs give several adapters."""

    option: ClassVar[str] = "ranks"
    ranks: tuple[FixedRank, ...]
    is_named: bool = False
    """Whether the adapters are named after their ranks."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"r{rank.linear}" for rank in self.ranks) if self.is_named else ("",)

    def facts(self, index: int) -> dict[str, object]:
        rank = self.ranks[index]
        return {"rank_policy": "fixed", "rank": rank.linear, "conv_rank": rank.conv}

    def caps(self, shapes: Shapes, dtype: torch.dtype) -> dict[ParamName, int]:
        linear, conv = (max(getattr(rank, kind) for rank in self.ranks) for kind in ("linear", "conv"))
        highest = FixedRank(linear=linear, conv=conv)
        return {name: highest.rank_of(shape) for name, shape in shapes.items()}

    def choices(self, allocator: RankAllocator | WidthAllocator, reference_sq: float) -> list[Choice]:
        return [allocator.fixed(rank) for rank in self.ranks]


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """Least error for files of these sizes; several sizes give several adapters.

    Attributes:
        nbytes: bytes of each file, including the header.
        words: the sizes as given, `200MB`.
    """

    option: ClassVar[str] = "max_size"
    nbytes: tuple[int, ...]
    words: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(word.replace(" ", "") for word in self.words) if len(self.words) > 1 else ("",)

    def facts(self, index: int) -> dict[str, object]:
        return {"rank_policy": self.option, self.option: self.words[index]}

    def caps(self, shapes: Shapes, dtype: torch.dtype) -> dict[ParamName, int]:
        per_rank = sum(rank_bytes(shape, dtype) for shape in shapes.values())
        if dtype == PACKED:
            per_rank *= _PACKED_SHARE
        cap = _ABOVE_UNIFORM * max(self.nbytes) / per_rank
        return {name: _below(rank_bound(shape), cap) for name, shape in shapes.items()}

    def choices(self, allocator: RankAllocator | WidthAllocator, reference_sq: float) -> list[Choice]:
        return allocator.within(self.nbytes)


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """A rule with one number and one adapter."""

    option: str
    value: float

    @property
    def names(self) -> tuple[str, ...]:
        return ("",)

    def facts(self, index: int) -> dict[str, object]:
        return {"rank_policy": self.option, self.option: self.value}

    def caps(self, shapes: Shapes, dtype: torch.dtype) -> dict[ParamName, int]:
        bounds = {name: rank_bound(shape) for name, shape in shapes.items()}
        return {name: _below(bound, _SHARE * bound) for name, bound in bounds.items()}


class ErrorLimit(_Limit):
    """Smallest file with this relative error: of the weights, or of the output if calibrated."""

    def choices(self, allocator: RankAllocator | WidthAllocator, reference_sq: float) -> list[Choice]:
        return [allocator.error(self.value**2 * reference_sq)]


class PsnrFloor(_Limit):
    """Smallest file with which each image reaches this PSNR in dB. It is found only by running choices."""


class ModuleErrorLimit(_Limit):
    """Smallest rank with this relative error for each layer."""

    def caps(self, shapes: Shapes, dtype: torch.dtype) -> dict[ParamName, int]:
        return {name: rank_bound(shape) for name, shape in shapes.items()}

    def choices(self, allocator: RankAllocator | WidthAllocator, reference_sq: float) -> list[Choice]:
        return [allocator.module_error(self.value)]


class EnergyShare(_Limit):
    """Smallest rank that keeps this share of its energy for each layer."""

    def caps(self, shapes: Shapes, dtype: torch.dtype) -> dict[ParamName, int]:
        return {name: rank_bound(shape) for name, shape in shapes.items()}

    def choices(self, allocator: RankAllocator | WidthAllocator, reference_sq: float) -> list[Choice]:
        return [allocator.energy(self.value)]


RankRule = FixedRanks | SizeLimits | ErrorLimit | PsnrFloor | ModuleErrorLimit | EnergyShare


def _below(bound: int, cap: float) -> int:
    return bound if bound <= SMALL_SIDE else min(bound, max(LEAST_CAP, math.ceil(cap)))
