"""Prepare statistics for the choice of ranks: the output norm, and a network to try LoRAs in."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from lbm_lora.adapter import Adapter
from lbm_lora.calibration.statistics import Statistics
from lbm_lora.checkpoint import fingerprint
from lbm_lora.errors import CheckpointError, Option, listing
from lbm_lora.extraction import Plan
from lbm_lora.fidelity.network import Network
from lbm_lora.fidelity.network_trial import NetworkTrial
from lbm_lora.fidelity.trial import LoraTrial
from lbm_lora.naming import ModuleName, weight_of
from lbm_lora.progress import Progress, warn
from lbm_lora.ranks import OutputNorm, Trial


def output_norm(
    statistics: Statistics,
    plan: Plan,
    *,
    path: Path,
    config_path: Path | None,
    images: Sequence[Path],
    is_checked: bool,
    device: torch.device,
    progress: Progress,
    network: Network | None = None,
) -> OutputNorm:
    """Return the norm that weights errors by their cost in the tuned model's output.

    Args:
        is_checked: also try LoRAs at the checks of the statistics.
        network: the tuned network and what runs it, if it is not an LBM.
    """
    tuned = plan.pairing.tuned
    if statistics.origin.tuned != fingerprint(tuned).digest:
        raise CheckpointError(
            f"{path} was measured on another model than {tuned.path}. Create it for this one: lbm-lora calibrate ",
            Option("tuned_model_path"),
            f" {tuned.path} ...",
        )
    check_measured(statistics, path, list(plan.shapes()))
    checks = statistics.checks if is_checked else ()

    def open_trial() -> Trial | None:
        if network is not None:
            return NetworkTrial(network, plan.pairing.base, checks, progress) if checks else None
        points = [check for check in checks if check.point is not None]
        if not points and not images:
            return None
        return LoraTrial(
            plan.pairing.tuned.checkpoint,
            plan.pairing.base,
            checks=points,
            images=images,
            config_path=config_path,
            device=device,
            progress=progress,
        )

    return replace(
        _norm(statistics, path), open_trial=open_trial, shrunk=lambda ridge: partial(statistics.shrunk, ridge=ridge)
    )


def _norm(statistics: Statistics, path: Path) -> OutputNorm:
    return OutputNorm(
        name=path.name,
        weights_of=statistics.__getitem__,
        vector_moment_of=statistics.vectors.get,
        energy=statistics.output_energy,
    )


def keeping_unmeasured(plan: Plan, statistics: Statistics) -> Plan:
    """Store changed weights dense if calibration could not measure them; warn with their names."""
    base, tuned, shapes = plan.pairing.base, plan.pairing.tuned, plan.shapes()
    changed = {
        module: f"{reason}, not measured"
        for module, reason in statistics.unmeasured.items()
        if module in shapes and not torch.equal(base.read(weight_of(module)), tuned.read(weight_of(module)))
    }
    if changed:
        values = sum(math.prod(shapes[module]) for module in changed)
        warn(
            f"{listing(f'{module} ({statistics.unmeasured[module]})' for module in changed)}: changed, and stored "
            f"dense, {values:,} values, since calibration cannot measure them. To leave them out: ",
            Option("exclude"),
            ".",
        )
    return plan.with_dense(changed)


def lora_norm(statistics: Statistics, adapter: Adapter, modules: Collection[ModuleName], *, path: Path) -> OutputNorm:
    """Return the norm that weights errors of a LoRA by their cost in the output of the model that it makes.

    Args:
        modules: modules that must have been measured.

    A LoRA that does not record its tuned model gives a warning, since it cannot be checked.
    """
    tuned = adapter.metadata.tuned_fingerprint
    if not tuned:
        warn(
            f"{adapter.label} does not say which tuned model it stands for, so it cannot be checked whether {path} was "
            "measured on that one, or on the base with this LoRA fused."
        )
    elif statistics.origin.tuned != tuned:
        raise CheckpointError(
            f"{path} was measured on another model than the one that {adapter.label} was extracted from. Create it for "
            "that one: lbm-lora calibrate ",
            Option("tuned_model_path"),
            " TUNED ...",
        )
    check_measured(statistics, path, modules)
    return _norm(statistics, path)


def check_measured(statistics: Statistics, path: Path, modules: Collection[ModuleName]) -> None:
    """Check that statistics cover modules, or know why they do not."""
    missing = [module for module in modules if module not in statistics and module not in statistics.unmeasured]
    if missing:
        raise CheckpointError(
            f"{path} has no statistics for {len(missing)} modules, such as {missing[0]}: the model does not call them"
            f"{'' if statistics.origin.images else ', or they were not chosen'}. Leave them out: ",
            Option("exclude"),
            f" '{missing[0]}'.",
        )
