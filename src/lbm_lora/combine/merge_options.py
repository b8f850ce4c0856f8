"""The options of a merge: those that make no sense together are refused, and the rule for the ranks is selected."""

from lbm_lora.configs.merge import MergeConfig
from lbm_lora.configs.rank_options import RankOptions
from lbm_lora.errors import ConfigError, Option, give_one
from lbm_lora.ranks import RankRule, rank_rule

WITH_DENSITY = ("ties", "dare", "knots")
"""Methods that keep a share of the entries."""

_LIMITS = ("rank", "max_size", "max_error", "max_output_error")


def merge_rule(config: MergeConfig) -> RankRule | None:
    """Return the rule that the options select; None if nothing is to be lost.

    Raises:
        ConfigError: several rules are selected, a value is invalid, or an option lacks or excludes another one.
    """
    asked = [name for name in ("exact", *_LIMITS) if getattr(config, name) not in (None, False)]
    if len(asked) > 1:
        raise give_one(asked[0], asked[1], "choose the ranks")
    if config.exact and config.method != "sum":
        raise ConfigError(
            Option("exact"), " keeps the sum, ", Option("method"), f" {config.method} changes it. Give one of them."
        )
    if config.conv_rank is not None and config.rank is None:
        raise ConfigError(Option("conv_rank"), " needs ", Option("rank"), ".")
    if config.calibration is not None and (config.exact or not asked):
        raise ConfigError(
            Option("calibration"), " weighs what is lost, but nothing is lost: add ", Option("rank"), ", ",
            Option("max_size"), " or ", Option("max_output_error"), ".",
        )  # fmt: skip
    _check_density(config)
    _check_images(config)
    if not asked or config.exact:
        return None
    options = RankOptions(
        rank=config.rank,
        conv_rank=config.conv_rank,
        max_size=() if config.max_size is None else (config.max_size,),
        max_error=config.max_error,
        max_output_error=config.max_output_error,
    )
    measure = Option("calibration", "STATISTICS")
    return rank_rule(options, is_calibrated=config.calibration is not None, has_images=False, measure=measure)


def _check_density(config: MergeConfig) -> None:
    if config.density is None:
        return
    if config.method not in WITH_DENSITY:
        raise ConfigError(
            Option("density"), " is for ", Option("method"), f" ties, dare and knots, not for {config.method}."
        )
    if not 0 < config.density <= 1:
        raise ConfigError(Option("density"), f" must be above 0 and at most 1, got {config.density:g}.")


def _check_images(config: MergeConfig) -> None:
    for name in ("base_model_path", "tuned_model_path"):
        is_given = getattr(config, name) is not None
        if is_given and config.images is None:
            raise ConfigError(Option(name), " is for fitting the scales: add ", Option("images", "FOLDER"), ".")
        if config.images is not None and not is_given:
            raise ConfigError(Option("images"), " fits the scales to outputs: add ", Option(name), ".")
    if config.images is not None and config.method != "sum":
        raise ConfigError(
            Option("images"), " fits the scales of a sum, not of ", Option("method"), f" {config.method}."
        )
