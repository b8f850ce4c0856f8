"""Options that choose the ranks of an adapter, and the one rule that they select."""

import math
import re

from lbm_lora.configs.rank_options import RankOptions
from lbm_lora.errors import ConfigError, Option, give_one
from lbm_lora.factorize import FixedRank
from lbm_lora.ranks.rules import (
    EnergyShare,
    ErrorLimit,
    FixedRanks,
    ModuleErrorLimit,
    PsnrFloor,
    RankRule,
    SizeLimits,
)

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMG])(I?))?(B?)\s*", re.IGNORECASE)
_MEASURE = Option("calibration_images", "FOLDER")
_DEFAULT_RANK = 32
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3}
_FEWEST_BYTES = 10_000  # a number without a unit below it is not a LoRA size: the unit was forgotten


_LIMITS: dict[str, tuple[type[ErrorLimit | PsnrFloor | EnergyShare | ModuleErrorLimit], float]] = {
    "max_error": (ErrorLimit, 1.0),
    "max_output_error": (ErrorLimit, 10.0),
    "min_psnr": (PsnrFloor, math.inf),
    "keep_energy": (EnergyShare, 1.0),
    "max_module_error": (ModuleErrorLimit, 1.0),
}
"""Rule and highest value of each option."""


def rank_rule(
    options: RankOptions,
    *,
    is_calibrated: bool,
    has_images: bool,
    measure: Option = _MEASURE,
) -> RankRule:
    """Return the one rule that the options select.

    Args:
        is_calibrated: whether errors are weighted by their cost in the output.
        has_images: whether there are images to run a LoRA on.
        measure: the option that measures the output where nothing does yet.

    Raises:
        ConfigError: several rules are selected, or one and a rank, which it would ignore; a rank or size is
            repeated, a value is invalid, or a rule lacks data.
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
    if option == "ranks":
        ranks = tuple(FixedRank.of(one, options.conv_rank) for one in options.ranks)
        return FixedRanks(ranks=ranks, is_named=True)
    return FixedRanks(ranks=(FixedRank.of(options.rank or _DEFAULT_RANK, options.conv_rank),))


def _limit(option: str, value: float) -> RankRule:
    kind, highest = _LIMITS[option]
    if highest == math.inf and not 0 < value < highest:
        raise ConfigError(Option(option), f" must be above 0 dB and finite, got {value:g}.")
    if highest < math.inf and not 0 < value <= highest:
        raise ConfigError(Option(option), f" must be above 0 and at most {highest:g} (0.05 is 5 %), got {value:g}.")
    return kind(option=option, value=value)


def _check_needs(option: str, measure: Option, *, is_calibrated: bool, has_images: bool) -> None:
    """Check that what a limit refers to is measured.

    Raises:
        ConfigError: nothing measures it.
    """
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
        raise ConfigError(
            Option("max_output_error"),
            " needs the denoiser's output: add ",
            measure,
            ".",
        )


def parse_nbytes(text: str, option: str = "max_size") -> int:
    """Parse `200MB`, `1.5 gb`, `800k` or `200MiB` into bytes; KB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024.

    Args:
        option: for error messages.

    Raises:
        ConfigError: the text is not a size, or is a small number without a unit.
    """
    match = _SIZE.fullmatch(text)
    nbytes = 0
    if match:
        number, unit, binary, byte = match.groups()
        nbytes = round(float(number) * (1024 if binary else 1000) ** _POWERS[(unit or "").upper()])
        if 0 < nbytes < _FEWEST_BYTES and not unit and not byte:
            raise ConfigError(
                Option(option),
                f" {text}: {number} of what? Give a unit: {number}MB or {number}KB.",
            )
    if nbytes < 1:
        raise ConfigError(Option(option), f" must be a file size such as 200MB or 1.5GB, got {text}.")
    return nbytes
