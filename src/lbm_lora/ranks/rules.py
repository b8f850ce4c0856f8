"""Rules for choosing the ranks of an adapter: a closed union of small values, and the options that select one.

A rule names the option that selects it (`option`), the adapters that it gives (`names`), the facts recorded in their
metadata (`facts`), the highest ranks that a survey must find for it (`caps`), and the choices that a survey alone can
make (`choices`). If only running a LoRA can check a rule's limit, `trials` searches for it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from lbm_lora.adapter import rank_bytes
from lbm_lora.errors import ConfigError, Option, give_one
from lbm_lora.factorize import PACKED, FixedRank, rank_bound
from lbm_lora.naming import ParamName
from lbm_lora.ranks.allocate import Allocator, Choice

SMALL_SIDE = 192
"""Up to this short side all ranks of a matrix are found anyway."""
LEAST_CAP = 64
"""Ranks of any larger matrix that a survey finds, if there are as many."""

_PACKED_SHARE = 0.25  # of 16 bits: what a value takes on average
_ABOVE_UNIFORM = 4  # the most that one layer may get, in multiples of the uniform rank
_SHARE = 0.25  # of its bound that a rank may reach under an error limit: above it the dense delta is nearly as small
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMG])(I?))?(B?)\s*", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3}
_FEWEST_BYTES = 10_000  # a number without a unit below it is not a LoRA size: the unit was forgotten

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

    def choices(self, allocator: Allocator, reference_sq: float) -> list[Choice]:
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

    def choices(self, allocator: Allocator, reference_sq: float) -> list[Choice]:
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

    def choices(self, allocator: Allocator, reference_sq: float) -> list[Choice]:
        return [allocator.error(self.value**2 * reference_sq, reference_sq)]


class PsnrFloor(_Limit):
    """Smallest file with which each image reaches this PSNR in dB. It is found only by running choices."""


class _ModuleLimit(_Limit):
    """A limit for each layer by itself."""

    def caps(self, shapes: Shapes, dtype: torch.dtype) -> dict[ParamName, int]:
        return {name: rank_bound(shape) for name, shape in shapes.items()}


class ModuleErrorLimit(_ModuleLimit):
    """Smallest rank with this relative error for each layer."""

    def choices(self, allocator: Allocator, reference_sq: float) -> list[Choice]:
        return [allocator.module_error(self.value)]


class EnergyShare(_ModuleLimit):
    """Smallest rank that keeps this share of its energy for each layer."""

    def choices(self, allocator: Allocator, reference_sq: float) -> list[Choice]:
        return [allocator.energy(self.value)]


RankRule = FixedRanks | SizeLimits | ErrorLimit | PsnrFloor | ModuleErrorLimit | EnergyShare

_LIMITS: dict[str, tuple[type[ErrorLimit | PsnrFloor | EnergyShare | ModuleErrorLimit], float]] = {
    "max_error": (ErrorLimit, 1.0),
    "max_output_error": (ErrorLimit, 10.0),
    "min_psnr": (PsnrFloor, math.inf),
    "keep_energy": (EnergyShare, 1.0),
    "max_module_error": (ModuleErrorLimit, 1.0),
}
"""Rule and highest value of each option."""


_DEFAULT_RANK = 32


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """Options for choosing ranks; see the verb `extract`. At most one of those after `conv_rank` may be given."""

    rank: int | None = None
    conv_rank: int | None = None
    ranks: tuple[int, ...] = ()
    max_size: tuple[str, ...] = ()
    max_error: float | None = None
    max_output_error: float | None = None
    min_psnr: float | None = None
    keep_energy: float | None = None
    max_module_error: float | None = None


def rank_rule(
    options: RankOptions,
    *,
    is_calibrated: bool,
    has_images: bool,
    measure: Option = Option("calibration_images", "FOLDER"),  # noqa: B008
) -> RankRule:
    """Return the one rule that the options select.

    Args:
        is_calibrated: whether errors are weighted by their cost in the output.
        has_images: whether there are images to run a LoRA on.
        measure: the option that measures the output where nothing does yet.
    """
    asked = [name for name in ("ranks", "max_size", *_LIMITS) if getattr(options, name) not in (None, ())]
    if len(asked) > 1:
        raise give_one(asked[0], asked[1], "choose the ranks")
    option = asked[0] if asked else ""
    if option and options.rank is not None:
        raise give_one("rank", option, "choose the ranks")
    if option and option != "ranks" and options.conv_rank is not None:
        raise give_one("conv_rank", option, "choose the ranks")
    if option in _LIMITS:
        _check_needs(option, measure, is_calibrated=is_calibrated, has_images=has_images)
        return _limit(option, getattr(options, option))
    words = [f"r{one}" for one in options.ranks] or [word.replace(" ", "") for word in options.max_size]
    if len({word.lower() for word in words}) < len(words):  # they become names of files
        raise ConfigError(f"{' '.join(words)}: give each rank or size only once.")
    if option == "max_size":
        return SizeLimits(nbytes=tuple(map(parse_nbytes, options.max_size)), words=options.max_size)
    ranks = tuple(FixedRank.of(one, options.conv_rank) for one in options.ranks or (options.rank or _DEFAULT_RANK,))
    return FixedRanks(ranks=ranks, is_named=option == "ranks")


def _limit(option: str, value: float) -> RankRule:
    kind, highest = _LIMITS[option]
    if highest == math.inf and not 0 < value < highest:
        raise ConfigError(Option(option), f" must be above 0 dB and finite, got {value:g}.")
    if highest < math.inf and not 0 < value <= highest:
        raise ConfigError(Option(option), f" must be above 0 and at most {highest:g} (0.05 is 5 %), got {value:g}.")
    return kind(option=option, value=value)


def _check_needs(option: str, measure: Option, *, is_calibrated: bool, has_images: bool) -> None:
    if option == "max_error" and is_calibrated:
        raise ConfigError(
            Option("max_error"),
            " limits the weight error, but calibration measures the output: use ",
            Option("max_output_error"),
            ".",
        )
    if option == "min_psnr" and not has_images:
        raise ConfigError(
            Option("min_psnr"),
            " needs images: add ",
            Option("calibration_images", "FOLDER"),
            ", or ",
            Option("calibration"),
            " and ",
            Option("images"),
            ".",
        )
    if option == "max_output_error" and not is_calibrated:
        raise ConfigError(Option("max_output_error"), " needs the denoiser's output: add ", measure, ".")


def parse_nbytes(text: str, option: str = "max_size") -> int:
    """Parse `200MB`, `1.5 gb`, `800k` or `200MiB` into bytes; KB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024."""
    match = _SIZE.fullmatch(text)
    nbytes = 0
    if match:
        number, unit, binary, byte = match.groups()
        nbytes = round(float(number) * (1024 if binary else 1000) ** _POWERS[(unit or "").upper()])
        if 0 < nbytes < _FEWEST_BYTES and not unit and not byte:
            raise ConfigError(Option(option), f" {text}: {number} of what? Give a unit: {number}MB or {number}KB.")
    if nbytes < 1:
        raise ConfigError(Option(option), f" must be a file size such as 200MB or 1.5GB, got {text}.")
    return nbytes


def _below(bound: int, cap: float) -> int:
    return bound if bound <= SMALL_SIDE else min(bound, max(LEAST_CAP, math.ceil(cap)))
