"""Give a LoRA other ranks: the verb `resize`."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lbm_lora.adapter import Adapter, common_dtype, load_adapter, precision
from lbm_lora.adapter.metadata import SETTINGS_KEY, parsed
from lbm_lora.apply import check_base, check_fit
from lbm_lora.checkpoint import Checkpoint, dtype_name, open_checkpoint
from lbm_lora.combine import Resized, resize_adapter
from lbm_lora.configs.resize import ResizeConfig
from lbm_lora.errors import AdapterError, ConfigError, Option
from lbm_lora.files import Outputs, together
from lbm_lora.hub import localized
from lbm_lora.model.device import resolve_device
from lbm_lora.naming import ModuleName, ParamName, leaf_of, left_out, module_of
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import OutputNorm, RankRule, Trial, rank_rule
from lbm_lora.verbs.values import lora_paths
from lbm_lora.workflows.files_beside import warn_of_others
from lbm_lora.workflows.resize_result import ResizeResult, result_of
from lbm_lora.workflows.sources import checked_image_paths, image_paths

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics


def run(config: ResizeConfig, progress: Progress = SILENT) -> ResizeResult:
    """Resize a LoRA in two passes over its factors.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    config = localized(config, progress)
    rule = check(config)
    paths = output_paths(config, rule, image_paths(config.images))
    images = checked_image_paths(config.images)
    with ExitStack() as stack, together():
        base = stack.enter_context(open_checkpoint(config.base_model_path)) if config.base_model_path else None
        component = None if base is None else base.component()
        adapter = load_adapter(config.lora_path, config.lora_alpha_is, base=component)
        found = resized(
            config, rule, adapter, paths, statistics=lambda: _statistics(config), base=base, images=images,
            progress=progress,
        )  # fmt: skip
        first, *further = [result_of(adapter, rule, path, one) for path, one in zip(paths, found, strict=True)]
        for path in paths:
            warn_of_others(path)
    return replace(first, further=tuple(further))


run_resize = run
"""Its name on the public page."""


def check(config: ResizeConfig) -> RankRule:
    """Return the rank rule; invalid options fail before a file is opened."""
    is_calibrated, has_images = config.calibration is not None, config.images is not None
    if config.min_psnr is not None and not has_images:
        raise ConfigError(Option("min_psnr"), " needs images: add ", Option("images", "FOLDER"), ".")
    if has_images and config.base_model_path is None:
        raise ConfigError(
            Option("images"), " needs a base to run LoRAs on: add ", Option("base_model_path", "BASE"), "."
        )
    if config.base_model_path is not None and not has_images and not is_calibrated:
        raise ConfigError(
            Option("base_model_path"), " is only for LoRAs that are run: add ", Option("images", "FOLDER"), " or ",
            Option("calibration", "STATISTICS"), ", or leave it out.",
        )  # fmt: skip
    measure = Option("calibration", "STATISTICS")
    return rank_rule(config, is_calibrated=is_calibrated, has_images=has_images, measure=measure)


def output_paths(config: ResizeConfig, rule: RankRule, images: Sequence[Path]) -> list[Path]:
    """Return the outputs: none of them an input, or a file of somebody else."""
    paths = lora_paths(config.save_to, rule.names)
    outputs = Outputs(overwrite=config.overwrite)
    outputs.reads(config.lora_path, config.base_model_path, config.calibration, config.config_path, *images)
    for path in paths:
        outputs.writes(path)
    outputs.check()
    return paths


def resized(
    config: ResizeConfig,
    rule: RankRule,
    adapter: Adapter,
    paths: Sequence[Path | None],
    *,
    statistics: "Callable[[], Statistics]",
    base: Checkpoint | None,
    images: Sequence[Path],
    progress: Progress,
) -> list[Resized]:
    """Resize an adapter.

    Args:
        config: its paths name things for messages and metadata; nothing is read from them.
        rule: from `check`.
        paths: one file for each of `rule.names`; None for a LoRA that is kept in memory.
        statistics: returns the statistics that weight errors by the output, if the config has any.
        base: the base, to run LoRAs on.
        images: images to run them on.
    """
    dropped = _left_out(config, adapter)
    dtype = precision(config.save_precision) if config.save_precision else common_dtype([adapter])
    if base is not None:
        component = base.component()
        check_fit(adapter, component.shapes, allow_unmatched=True)
        check_base(adapter, component, allow_other_base=config.allow_other_base)
    norm, measured = None, None
    if config.calibration is not None:
        from lbm_lora.calibration import lora_norm  # only this needs the network classes

        measured = statistics()
        norm = lora_norm(measured, adapter, _weighted(adapter, dropped), path=config.calibration)
    return resize_adapter(
        adapter,
        rule,
        paths,
        dtype=dtype,
        left_out=dropped,
        settings=_settings(config, adapter, dtype, norm, measured),
        norm=norm,
        open_trial=lambda: _trial(config, adapter, base, measured, images, progress),
        progress=progress,
    )


def _left_out(config: ResizeConfig, adapter: Adapter) -> dict[ParamName, str]:
    """Return the params that are not kept, with the reason.

    Raises:
        PatternError: a pattern matches nothing.
        AdapterError: nothing remains.
    """
    dropped = left_out(adapter.params, include=config.include, exclude=config.exclude, prefix=adapter.prefix)
    if not config.dense:
        others = [name for name in adapter.dense if leaf_of(name) != "weight" or adapter.dense[name].dim() < 2]
        dropped |= {name: "dense deltas are switched off" for name in others if name not in dropped}
    if len(dropped) == len(adapter):
        raise AdapterError(
            Option("include"), " and ", Option("exclude"),
            f" leave out all {len(adapter)} deltas of {adapter.label}. Change one of them.",
        )  # fmt: skip
    return dropped


def _weighted(adapter: Adapter, dropped: dict[ParamName, str]) -> list[ModuleName]:
    """Return the modules of the weights that get ranks."""
    weights = [name for name in adapter.params if len(adapter.shape_of(name) or ()) in (2, 4)]
    return [module_of(name) for name in weights if name not in dropped and leaf_of(name) == "weight"]


def _statistics(config: ResizeConfig) -> "Statistics":
    from lbm_lora.calibration import load_statistics

    assert config.calibration is not None
    return load_statistics(config.calibration)


def _trial(
    config: ResizeConfig,
    adapter: Adapter,
    base: Checkpoint | None,
    statistics: "Statistics | None",
    images: Sequence[Path],
    progress: Progress,
) -> Trial | None:
    """Open the network in which LoRAs are compared with the one that is resized."""
    checks = statistics.checks if statistics is not None else ()
    if base is None or not (checks or images):
        return None
    from lbm_lora.fidelity.trial import LoraTrial

    return LoraTrial(
        base,
        base.component(),
        checks=checks,
        images=images,
        config_path=config.config_path,
        device=resolve_device(config.device),
        progress=progress,
        wanted=adapter.stored(),
    )


def _settings(
    config: ResizeConfig,
    adapter: Adapter,
    dtype: torch.dtype,
    norm: OutputNorm | None,
    statistics: "Statistics | None",
) -> dict[str, object]:
    """Return the settings that the file records; file names without folders."""
    found: dict[str, object] = {
        "resized_from": adapter.path.name if adapter.path else adapter.label,
        "dtype": dtype_name(dtype),
        "include": config.include,
        "exclude": config.exclude,
        "dense": config.dense,
        "calibration": norm.name if norm else None,
    }
    if norm is not None:
        found["method"] = "calibrated"
    if statistics is not None and statistics.image_digests:
        from lbm_lora.imaging.digests import packed, unpacked

        earlier = unpacked(parsed(adapter.metadata.facts, SETTINGS_KEY).get("calibration_images"))
        found["calibration_images"] = packed(dict.fromkeys([*statistics.image_digests, *sorted(earlier)]))
    return found
