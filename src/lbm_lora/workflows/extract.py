"""Extract a LoRA from a fine-tuned checkpoint: the verb `extract`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from lbm_lora.adapter import Ledger
from lbm_lora.atomic import guard_output
from lbm_lora.checkpoint import Checkpoint, dtype_name, dtype_of, open_checkpoint
from lbm_lora.errors import ConfigError, OutputError
from lbm_lora.extract import COVERAGES, Extraction, Plan, Settings, plan_extraction
from lbm_lora.factorize import FULL_RANK, FixedRank
from lbm_lora.model.device import resolve_device
from lbm_lora.model.resolve import config_beside
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report import WeightReport, file_labels, weight_report
from lbm_lora.workflows.choosing import Policy, Prediction, parse_size, surveyed
from lbm_lora.workflows.extracted import Target, write_adapters, write_sidecar

_log = logging.getLogger(__name__)

_VAE = "vae."
_BASE_MARK = "exact_architecture_match"  # what `lbm-lora base` writes as `initialization`
_POLICIES = ("ranks", "max_size", "max_error", "max_output_error", "keep_energy", "max_module_error")
_SHARES = {"max_error": 1.0, "max_output_error": 10.0, "keep_energy": 1.0, "max_module_error": 1.0}


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms whole."""

    base_model_path: Path
    """Checkpoint that the tuned one started from (.safetensors, shards with an index, .ckpt, or a folder)."""
    tuned_model_path: Path
    """The fine-tuned checkpoint."""
    save_to: Path
    """Where to write the LoRA: a .safetensors file."""
    rank: int = 32
    """Rank of linear layers. 9999: as high as each matrix allows."""
    conv_rank: int = 16
    """Rank of conv layers. 9999: as high as each matrix allows."""
    ranks: tuple[int, ...] = ()
    """Several LoRAs in one pass, one for each of these ranks of linear layers, named LORA_r16.safetensors and so on.
    Their conv ranks are in the proportion of --conv_rank to --rank."""
    calibration: Path | None = None
    """Statistics of the tuned model from `lbm-lora calibrate`: least error of its output instead of the weights."""
    calibration_images: str | None = None
    """Folder, picture or quoted glob of sources: make those statistics first, beside the LoRA."""
    max_size: tuple[str, ...] = ()
    """Ranks chosen for all layers together: the best that a file of this size can hold (200MB, 1.5GB). Several sizes
    give several LoRAs, named LORA_200MB.safetensors and so on."""
    max_error: float | None = None
    """The smallest file whose total relative error (of the weights) is at most this (0.3: 30 %)."""
    max_output_error: float | None = None
    """The smallest file whose predicted relative error of the denoiser's output is at most this. Needs calibration."""
    keep_energy: float | None = None
    """For each layer the rank that keeps this share of its energy (0.95)."""
    max_module_error: float | None = None
    """For each layer the rank whose relative error is at most this (0.3)."""
    include: tuple[str, ...] = ()
    """Only tensors that one of these patterns matches: part of a name, a glob, or re:REGEX."""
    exclude: tuple[str, ...] = ()
    """Leave these tensors out; wins over --include."""
    target_coverage: Literal["full", "attention", "extended"] = "full"
    """Which layers: all, attention only (attn1 and attn2), or attention with feed-forward and projections."""
    dense: bool = True
    """Keep the changes of biases and norms, whole."""
    save_precision: Literal["float", "fp16", "bf16"] = "bf16"
    """Precision of the stored tensors."""
    min_diff: float = 0.0
    """Leave out tensors whose largest change is below this; they enter the ledger."""
    device: str = "auto"
    """Where matrices are decomposed: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    create_base_model: bool = False
    """Where --base_model_path does not exist: make the base there first, from --backbone_signature."""
    backbone_signature: str | None = None
    """Backbone for --create_base_model. Default: as in `lbm-lora base`."""
    config_path: Path | None = None
    """LBM's config.yaml for --create_base_model. Default: the one beside the tuned checkpoint."""


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """The files that were written, and how well they keep the change; with --ranks those of the first rank."""

    adapter: Path
    sidecar: Path
    nbytes: int
    report: WeightReport
    notes: tuple[str, ...]
    predicted: Prediction | None = None
    """What was expected of the LoRA; None where ranks were given and nothing was calibrated."""
    sizes: tuple[Prediction, ...] = ()
    """What other sizes would give, where ranks were chosen for all layers together."""
    further: tuple["ExtractResult", ...] = ()
    """The LoRAs of the other ranks or sizes."""


def run(config: ExtractConfig, progress: Progress = SILENT) -> ExtractResult:
    """Extract the LoRA: in one pass over both files where the ranks are given, in two where they are chosen.

    Raises:
        InputError: of the kind that fits; nothing is written then. See `lbm_lora.errors`.
    """
    policy = _policy(config)
    paths = _paths(config, policy)
    _check(config, policy, paths)
    settings = Settings(
        dtype=dtype_of(config.save_precision), min_diff=config.min_diff, device=resolve_device(config.device)
    )
    with open_checkpoint(_base(config, progress)) as base, open_checkpoint(config.tuned_model_path) as tuned:
        plan = plan_extraction(
            base.component(),
            tuned.component(),
            policy.fixed[0] if policy.fixed else FixedRank(),
            include=(*config.include, *COVERAGES[config.target_coverage]),
            exclude=config.exclude,
            keep_dense=config.dense,
        )
        notes = (*_swap_notes(tuned), *_vae_notes(base, tuned))
        calibration = _calibration(config, progress)
        if policy.fixed and calibration is None:
            written = _given(config, policy, paths, plan, settings, progress)
        else:
            written = _chosen(config, policy, paths, plan, settings, calibration, progress)
    labels = file_labels(base.path, tuned.path)
    results = [_result(config, one, labels, notes) for one in written]
    return replace(results[0], further=tuple(results[1:]))


@dataclass(frozen=True, kw_only=True)
class _Written:
    """One LoRA that was written."""

    target: Target
    ledger: Ledger
    predicted: Prediction | None = None
    sizes: tuple[Prediction, ...] = ()


def _given(
    config: ExtractConfig, policy: Policy, paths: Sequence[Path], plan: Plan, settings: Settings, progress: Progress
) -> list[_Written]:
    """Fixed ranks, least error of the weights: one pass."""
    plans = [plan.with_ranks(ranks) for ranks in policy.fixed]
    targets = [
        Target(
            path=path,
            shapes=one.shapes(),
            ranks=one.ranks(),
            dense=one.dense(),
            rank=ranks.linear,
            conv_rank=ranks.conv,
            settings=_settings(config, {"rank_policy": "fixed", "rank": ranks.linear, "conv_rank": ranks.conv}),
        )
        for path, one, ranks in zip(paths, plans, policy.fixed, strict=True)
    ]
    ledgers = write_adapters(targets, Extraction(plans, settings), plan, settings.dtype, progress)
    return [_Written(target=target, ledger=ledger) for target, ledger in zip(targets, ledgers, strict=True)]


def _chosen(
    config: ExtractConfig,
    policy: Policy,
    paths: Sequence[Path],
    plan: Plan,
    settings: Settings,
    calibration: Path | None,
    progress: Progress,
) -> list[_Written]:
    """Ranks or errors that are weighed for all layers together: two passes."""
    asked = {"rank_policy": _policy_name(config), "calibration": calibration.name if calibration else None}
    facts = [_settings(config, {**asked, **_policy_values(config, index)}) for index in range(len(paths))]
    with surveyed(
        plan,
        settings,
        policy,
        calibration,
        run_settings=max(facts, key=lambda one: len(str(one))),
        beside=config.save_to,
        progress=progress,
    ) as chosen:
        choices = chosen.choices(policy)
        targets = [chosen.target(choice, path, one) for choice, path, one in zip(choices, paths, facts, strict=True)]
        with chosen.emission(choices) as emission:
            ledgers = write_adapters(targets, emission, chosen.plan, settings.dtype, progress)
        return [
            _Written(
                target=target,
                ledger=ledger,
                predicted=chosen.prediction(choice),
                sizes=chosen.table(choice.nbytes),
            )
            for target, ledger, choice in zip(targets, ledgers, choices, strict=True)
        ]


def _policy(config: ExtractConfig) -> Policy:
    """The one way to choose ranks that was asked for.

    Raises:
        ConfigError: several ways were asked for, or a value cannot be.
    """
    given = [name for name in _POLICIES if getattr(config, name) not in (None, ())]
    if len(given) > 1:
        raise ConfigError(f"--{given[0]} and --{given[1]} both choose the ranks. Give one of them.")
    for name, highest in _SHARES.items():
        value = getattr(config, name)
        if value is not None and not 0 < value <= highest:
            raise ConfigError(f"--{name} is {value:g}: give a share above 0 and up to {highest:g} (0.05 is 5 %).")
    if config.max_size:
        return Policy(sizes=tuple(map(parse_size, config.max_size)))
    if config.max_error is not None or config.max_output_error is not None:
        return Policy(error=config.max_error if config.max_error is not None else config.max_output_error)
    if config.max_module_error is not None:
        return Policy(module_error=config.max_module_error)
    if config.keep_energy is not None:
        return Policy(energy=config.keep_energy)
    if not config.ranks:
        return Policy(fixed=(FixedRank(linear=config.rank, conv=config.conv_rank),))
    return Policy(fixed=tuple(FixedRank(linear=rank, conv=_conv_rank(config, rank)) for rank in config.ranks))


def _policy_name(config: ExtractConfig) -> str:
    return next((name for name in _POLICIES if getattr(config, name) not in (None, ())), "fixed")


def _policy_values(config: ExtractConfig, index: int) -> dict[str, object]:
    """What was asked for, for the file's metadata."""
    name = _policy_name(config)
    if name == "fixed":
        return {"rank": config.rank, "conv_rank": config.conv_rank}
    value = getattr(config, name)
    return {name: value[index] if isinstance(value, tuple) else value}


def _paths(config: ExtractConfig, policy: Policy) -> list[Path]:
    """The file of each LoRA.

    Raises:
        ConfigError: a rank or a size is given twice.
    """
    words = [f"r{rank}" for rank in config.ranks] or [size.replace(" ", "") for size in config.max_size]
    if len(set(words)) < len(words):
        raise ConfigError(f"{' '.join(words)}: each rank or size is given once.")
    if (len(words) == 1 and not config.ranks) or not words:
        return [config.save_to]
    return [config.save_to.with_name(f"{config.save_to.stem}_{word}{config.save_to.suffix}") for word in words]


def _conv_rank(config: ExtractConfig, rank: int) -> int:
    """The conv rank that belongs to one of --ranks; full rank stays full."""
    if rank >= FULL_RANK:
        return FULL_RANK
    return max(1, round(rank * config.conv_rank / config.rank)) if config.rank > 0 else rank


def _calibration(config: ExtractConfig, progress: Progress) -> Path | None:
    """The statistics to use; where only images are given, they are measured first."""
    if config.calibration is not None or config.calibration_images is None:
        return config.calibration
    # only this needs the network classes
    from lbm_lora.workflows import calibrate

    path = config.save_to.with_name(f"{config.save_to.stem}_calibration.safetensors")
    calibrate.run(
        calibrate.CalibrateConfig(
            tuned_model_path=config.tuned_model_path,
            images=config.calibration_images,
            save_to=path,
            device=config.device,
            config_path=config.config_path,
        ),
        progress,
    )
    return path


def _check(config: ExtractConfig, policy: Policy, paths: Sequence[Path]) -> None:
    if config.save_to.suffix != ".safetensors":
        raise OutputError(f"--save_to {config.save_to}: a LoRA is a .safetensors file.")
    if config.include and COVERAGES[config.target_coverage]:
        raise ConfigError(
            f"--include and --target_coverage {config.target_coverage} both choose layers. Give one of them."
        )
    if config.device.startswith("mps"):
        raise ConfigError("--device mps: the decomposition sums in fp64, which mps has not. Use cpu.")
    if config.min_diff < 0:
        raise ConfigError(f"--min_diff is {config.min_diff:g}: it is compared with absolute values, give 0 or more.")
    if config.calibration is not None and config.calibration_images is not None:
        raise ConfigError("--calibration and --calibration_images both weigh the errors. Give one of them.")
    calibrated = config.calibration is not None or config.calibration_images is not None
    if config.max_output_error is not None and not calibrated:
        raise ConfigError("--max_output_error is about the denoiser's output: add --calibration_images FOLDER.")
    if config.max_error is not None and calibrated:
        raise ConfigError("--max_error is about the weights, calibration about the output: give --max_output_error.")
    inputs = [config.base_model_path, config.tuned_model_path, *([config.calibration] if config.calibration else [])]
    for path in paths:
        guard_output(path, inputs)


def _base(config: ExtractConfig, progress: Progress) -> Path:
    if not config.create_base_model:
        return config.base_model_path
    # only this needs the network classes: extraction itself works without them
    from lbm_lora.workflows.base import ensure_base

    return ensure_base(
        config.base_model_path,
        backbone_signature=config.backbone_signature,
        config_path=config.config_path or config_beside(config.tuned_model_path),
        progress=progress,
    )


def _settings(config: ExtractConfig, policy: Mapping[str, object]) -> dict[str, object]:
    """What the file says of the run; file names without folders."""
    return {
        "base": config.base_model_path.name,
        "tuned": config.tuned_model_path.name,
        "dtype": dtype_name(dtype_of(config.save_precision)),
        **policy,
        "include": config.include,
        "exclude": config.exclude,
        "target_coverage": config.target_coverage,
        "dense": config.dense,
        "min_diff": config.min_diff,
    }


def _result(config: ExtractConfig, written: _Written, labels: tuple[str, str], notes: tuple[str, ...]) -> ExtractResult:
    path = written.target.path
    report = weight_report(written.ledger, base=labels[0], tuned=labels[1], adapter=path.name)
    sidecar = write_sidecar(written.target, report, base=config.base_model_path.name, min_diff=config.min_diff)
    return ExtractResult(
        adapter=path,
        sidecar=sidecar,
        nbytes=path.stat().st_size,
        report=report,
        notes=notes,
        predicted=written.predicted,
        sizes=written.sizes,
    )


def _swap_notes(tuned: Checkpoint) -> tuple[str, ...]:
    """A warning where the tuned file says that it is an exact base."""
    if _BASE_MARK not in (tuned.metadata.get("initialization"), tuned.extra.get("initialization")):
        return ()
    note = f"{tuned.path} says that it is an exact base, not a tuned checkpoint. Are base and tuned swapped?"
    _log.warning(note)
    return (note,)


def _vae_notes(base: Checkpoint, tuned: Checkpoint) -> tuple[str, ...]:
    """A warning where the two carry different VAEs: no LoRA of the denoiser can make up for it."""
    names = [key for key in tuned.specs if key.startswith(_VAE) and key in base.specs]
    differing = [key for key in names if not torch.equal(base.read(key).float(), tuned.read(key).float())]
    if not differing:
        return ()
    note = (
        f"The VAEs differ in {len(differing)} of {len(names)} tensors ({differing[0]} ...): the LoRA is about the "
        "denoiser alone, so base + LoRA decodes with the base's VAE."
    )
    _log.warning(note)
    return (note,)
