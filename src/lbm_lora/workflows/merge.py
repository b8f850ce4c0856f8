"""Merge LoRAs into one: the verb `merge`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.adapter import Adapter, AdapterMetadata, Ledger, LoraScale, Status, load_adapter
from lbm_lora.apply import check_base, scales_for
from lbm_lora.checkpoint import Checkpoint, open_checkpoint
from lbm_lora.combine import MergedAdapter, MergedBase, Summand, merge_adapters, merge_rule, merged_base
from lbm_lora.configs.merge import MergeConfig
from lbm_lora.errors import CheckpointError, ConfigError, Option, listing, plural
from lbm_lora.files import Outputs, written_bytes
from lbm_lora.hub import localized
from lbm_lora.model.device import resolve_device
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.ranks import OutputNorm, RankRule
from lbm_lora.workflows.files_beside import check_form, warn_of_others
from lbm_lora.workflows.sources import checked_image_paths, image_paths

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics
    from lbm_lora.fidelity.fitted_scales import FittedScales

Scaled = Sequence[tuple[Adapter, LoraScale]]
"""LoRAs with their scales."""


@dataclass(frozen=True, kw_only=True)
class MergedLora:
    """One of the merged LoRAs."""

    path: Path
    """Name of its file; `LoRA 1` and so on if it has none."""
    lora_scale: float | str
    """A number, or the text of numbers by layer."""
    modules: int
    """Its lora modules."""
    dense: int
    """Its dense deltas."""


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """Written file, and what it holds."""

    adapter: Path
    nbytes: int
    loras: tuple[MergedLora, ...]
    method: str
    modules: int
    """Lora modules in the file."""
    dense: int
    """Dense deltas in the file."""
    left_out: int
    """Deltas that are zero at these scales, or not worth their bytes."""
    ranks: tuple[int, int]
    """Lowest and highest rank of the lora modules; zeros if there are none."""
    relative_error: float
    """Of all deltas as stored, relative to the merged deltas before their ranks were limited and rounded."""
    chain: tuple[str, ...]
    """LoRAs of a chain base -> tuned -> further tuned, in this order; empty if all have one base."""
    fit: "FittedScales | None"
    """How the scales were fitted, with `images`."""
    seconds: float


def run(config: MergeConfig, progress: Progress = SILENT) -> MergeResult:
    """Merge LoRAs, and write the result to `save_to`.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    start = time.perf_counter()
    config = localized(config, progress)
    rule = merge_rule(config)
    check_output(config, image_paths(config.images))
    images = checked_image_paths(config.images)
    loras = scaled(config, [load_adapter(path, config.lora_alpha_is) for path in config.lora_path])
    base, fit = base_of(config, loras), None
    if config.base_model_path is not None and config.tuned_model_path is not None:
        with open_checkpoint(config.base_model_path) as first, open_checkpoint(config.tuned_model_path) as tuned:
            loras, base, fit = fitted(config, loras, base, first, tuned, images, progress)
    found = merged(config, rule, loras, base, config.save_to, None, progress)
    warn_of_others(config.save_to)
    return MergeResult(
        adapter=config.save_to,
        nbytes=written_bytes(config.save_to),
        loras=tuple(
            MergedLora(path=path, lora_scale=scale.plain, modules=len(lora.modules), dense=len(lora.dense))
            for path, (lora, scale) in zip(config.lora_path, loras, strict=True)
        ),
        method=config.method,
        modules=len(found.ledger.of(Status.LORA)),
        dense=len(found.ledger.of(Status.DENSE)),
        left_out=len(found.ledger.of(Status.UNCHANGED, Status.EXCLUDED)),
        ranks=_span(found.ledger),
        relative_error=found.ledger.total().relative_error,
        chain=base.labels,
        fit=fit,
        seconds=time.perf_counter() - start,
    )


run_merge = run
"""Its name on the public page."""


def check_output(config: MergeConfig, images: Sequence[Path]) -> None:
    """Refuse an output that is not a .safetensors file, that is also an input, or that is a file of somebody else.

    Raises:
        OutputError: in each case.
    """
    check_form(config.save_to)
    outputs = Outputs(overwrite=config.overwrite)
    outputs.reads(*config.lora_path, config.calibration, config.base_model_path, config.tuned_model_path)
    outputs.reads(config.config_path, *images).writes(config.save_to).check()


def scaled(config: MergeConfig, loras: Sequence[Adapter]) -> Scaled:
    """Return the LoRAs with their scales.

    Raises:
        ConfigError: there are no LoRAs, or the number of scales does not match theirs.
    """
    if not loras:
        raise ConfigError(Option("lora_path"), " names no file, so there is nothing to merge. Give two LoRAs or more.")
    return list(zip(loras, scales_for(len(loras), config.lora_scale), strict=True))


def base_of(config: MergeConfig, loras: Scaled) -> MergedBase:
    """Return the base of the merged LoRA; see `merged_base`."""
    return merged_base([Summand.of(*one) for one in loras], allow_other_base=config.allow_other_base)


def fitted(
    config: MergeConfig,
    loras: Scaled,
    base: MergedBase,
    first: Checkpoint,
    tuned: Checkpoint,
    images: Sequence[Path],
    progress: Progress,
) -> "tuple[Scaled, MergedBase, FittedScales]":
    """Return the LoRAs with the scales that fit the tuned model's outputs, and their base at these scales.

    Args:
        base: of all LoRAs.
        first: the checkpoint that they are added to.
        images: of the kind that the model is used on.

    Raises:
        WrongBaseError: they were made from another base than `first`.
        InputError: a LoRA does not fit a model, or a model cannot be built.
    """
    from lbm_lora.fidelity.fitted_scales import fit_scales  # only this needs the network classes

    metadata = AdapterMetadata(base_fingerprint=base.fingerprint, base_tensors=base.tensors)
    check_base(replace(loras[0][0], metadata=metadata), first.component(), allow_other_base=config.allow_other_base)
    found = fit_scales(
        first,
        tuned,
        [Summand.of(*one).scaled() for one in loras],
        images,
        config_path=config.config_path,
        device=resolve_device(config.device),
        progress=progress,
    )
    new = [(lora, scale.times(factor)) for (lora, scale), factor in zip(loras, found.factors, strict=True)]
    return new, replace(base, tuned=""), found


def merged(
    config: MergeConfig,
    rule: RankRule | None,
    loras: Scaled,
    base: MergedBase,
    path: Path | None,
    statistics: "Statistics | None",
    progress: Progress,
) -> MergedAdapter:
    """Merge LoRAs; see `merge_adapters`.

    Args:
        statistics: None: those of `config.calibration`, if any.
    """
    norm = None
    if config.calibration is not None:
        from lbm_lora.calibration import load_statistics  # only this needs the network classes

        norm = _norm(config.calibration, statistics or load_statistics(config.calibration), loras)
    return merge_adapters(config, rule, loras, base, path, norm=norm, progress=progress)


def _norm(path: Path, statistics: "Statistics", loras: Scaled) -> OutputNorm:
    """Return the norm that weighs errors by their cost in the output of the model that was measured.

    Raises:
        CheckpointError: the statistics lack a module of the LoRAs.
    """
    missing = sorted({module for lora, _ in loras for module in lora.modules if module not in statistics})
    if missing:
        raise CheckpointError(
            f"{path} has no statistics for {plural(len(missing), 'module')} of the LoRAs: "
            f"{listing(missing, limit=3)}. Measure the model that the LoRAs are for: lbm-lora calibrate."
        )
    tuned = {lora.metadata.tuned_fingerprint for lora, _ in loras} - {""}
    if tuned and statistics.origin.tuned not in tuned:
        warn(
            f"{path} was measured on another model than those that the LoRAs were extracted from: errors are weighed "
            "by what that model's output is sensitive to."
        )
    return OutputNorm(
        name=path.name,
        weights_of=statistics.__getitem__,
        vector_moment_of=statistics.vectors.get,
        energy=statistics.output_energy,
    )


def _span(ledger: Ledger) -> tuple[int, int]:
    ranks = [row.rank or 0 for row in ledger.of(Status.LORA)]
    return (min(ranks), max(ranks)) if ranks else (0, 0)
