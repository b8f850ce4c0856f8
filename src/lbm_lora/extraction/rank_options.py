"""The options that choose the ranks of an adapter, and the one rule that they ask for."""

import math
import re

from lbm_lora.configs.rank_options import RankOptions
from lbm_lora.errors import ConfigError, Option, give_one
from lbm_lora.extraction.rules import (
    EnergyShare,
    ErrorLimit,
    FixedRanks,
    ModuleErrorLimit,
    PsnrFloor,
    RankRule,
    SizeLimits,
)
from lbm_lora.factorize import FULL_RANK, FixedRank

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


_LIMITS: dict[str, tuple[type[ErrorLimit | PsnrFloor | EnergyShare | ModuleErrorLimit], float]] = {
    "max_error": (ErrorLimit, 1.0),
    "max_output_error": (ErrorLimit, 10.0),
    "min_psnr": (PsnrFloor, math.inf),
    "keep_energy": (EnergyShare, 1.0),
    "max_module_error": (ModuleErrorLimit, 1.0),
}
"""Option -> its rule, and the highest value that it takes."""


def rank_rule(options: RankOptions, *, is_calibrated: bool, has_images: bool) -> RankRule:
    """The one rule that options ask for.

    Args:
        is_calibrated: whether errors are weighed by what they cost in the output.
        has_images: whether there are images to run a LoRA on.

    Raises:
        ConfigError: several rules were asked for, one of them twice, a value cannot be, or a rule lacks what it needs.
    """
    asked = [name for name in ("ranks", "max_size", *_LIMITS) if getattr(options, name) not in (None, ())]
    if len(asked) > 1:
        raise give_one(asked[0], asked[1], "choose the ranks")
    option = asked[0] if asked else ""
    if option in _LIMITS:
        _check_needs(option, is_calibrated=is_calibrated, has_images=has_images)
        return _limit(option, getattr(options, option))
    words = [f"r{one}" for one in options.ranks] or [word.replace(" ", "") for word in options.max_size]
    if len(set(words)) < len(words):
        raise ConfigError(f"{' '.join(words)}: each rank or size is given once.")
    if option == "max_size":
        return SizeLimits(nbytes=tuple(map(parse_nbytes, options.max_size)), words=options.max_size)
    if option == "ranks":
        pairs = (FixedRank(linear=one, conv=_conv_rank(one, options)) for one in options.ranks)
        return FixedRanks(ranks=tuple(pairs), is_named=True)
    return FixedRanks(ranks=(FixedRank(linear=options.rank, conv=options.conv_rank),))


def _limit(option: str, value: float) -> RankRule:
    kind, highest = _LIMITS[option]
    if highest == math.inf and not 0 < value < highest:
        raise ConfigError(Option(option), f" must be above 0 dB and finite, got {value:g}.")
    if highest < math.inf and not 0 < value <= highest:
        raise ConfigError(Option(option), f" is {value:g}: give a share above 0 and up to {highest:g} (0.05 is 5 %).")
    return kind(option=option, value=value)


def _check_needs(option: str, *, is_calibrated: bool, has_images: bool) -> None:
    """Raises:
    ConfigError: a limit on what nothing measures.
    """
    if option == "max_error" and is_calibrated:
        raise ConfigError(
            Option("max_error"),
            " is about the weights, calibration about the output: give ",
            Option("max_output_error"),
            ".",
        )
    if option == "min_psnr" and not has_images:
        raise ConfigError(
            Option("min_psnr"),
            " is about images: add ",
            Option("calibration_images"),
            " FOLDER, or ",
            Option("calibration"),
            " and ",
            Option("images"),
            ".",
        )
    if option == "max_output_error" and not is_calibrated:
        raise ConfigError(
            Option("max_output_error"),
            " is about the denoiser's output: add ",
            Option("calibration_images"),
            " FOLDER.",
        )


def parse_nbytes(text: str) -> int:
    """`200MB`, `1.5 GB`, `800kB` or plain bytes -> bytes; units are powers of ten.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)[iI]?[bB]?\s*", text)
    nbytes = round(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if nbytes < 1:
        raise ConfigError(Option("max_size"), f" {text}: give a size such as 200MB or 1.5GB.")
    return nbytes


def _conv_rank(one: int, options: RankOptions) -> int:
    """The conv rank that belongs to one of several ranks; full rank stays full."""
    if one >= FULL_RANK:
        return FULL_RANK
    return max(1, round(one * options.conv_rank / options.rank)) if options.rank > 0 else one
