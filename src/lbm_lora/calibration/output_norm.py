"""Prepare statistics for the choice of ranks: the output norm, and a network to try LoRAs in."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from lbm_lora.adapter import Adapter
from lbm_lora.calibration.statistics import Statistics
from lbm_lora.checkpoint import fingerprint
from lbm_lora.errors import CheckpointError, Option
from lbm_lora.extraction import Plan
from lbm_lora.fidelity.trial import LoraTrial
from lbm_lora.naming import ModuleName
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
) -> OutputNorm:
    """Return the norm that weights errors by their cost in the tuned model's output.

    Args:
        path: path of the statistics file, or its name in messages.
        images: images that LoRAs are tried on.
        is_checked: also try LoRAs at the check points of the statistics.

    Raises:
        CheckpointError: the statistics are of another model, or lack a module.
    """
    tuned = plan.pairing.tuned
    if statistics.origin.tuned != fingerprint(tuned).digest:
        raise CheckpointError(
            f"{path} was measured on another model than {tuned.path}. Create it for this one: lbm-lora calibrate ",
            Option("tuned_model_path"),
            f" {tuned.path} ...",
        )
    check_measured(statistics, path, list(plan.shapes()))
    points = statistics.check_points if is_checked else ()

    def open_trial() -> Trial | None:
        if not points and not images:
            return None
        return LoraTrial(
            plan.pairing.tuned.checkpoint,
            plan.pairing.base,
            points=points,
            images=images,
            config_path=config_path,
            device=device,
            progress=progress,
        )

    return OutputNorm(
        name=path.name,
        weights_of=statistics.__getitem__,
        vector_moment_of=statistics.vectors.get,
        energy=statistics.output_energy,
        open_trial=open_trial,
    )


def lora_norm(statistics: Statistics, adapter: Adapter, modules: Collection[ModuleName], *, path: Path) -> OutputNorm:
    """Return the norm that weights errors of a LoRA by their cost in the output of the model that it makes.

    Args:
        modules: modules that must have been measured.
        path: path of the statistics file, or its name in messages.

    A LoRA that does not record its tuned model gives a warning, since it cannot be checked.

    Raises:
        CheckpointError: the statistics are of another model than the LoRA's, or lack a module.
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
    return OutputNorm(
        name=path.name,
        weights_of=statistics.__getitem__,
        vector_moment_of=statistics.vectors.get,
        energy=statistics.output_energy,
    )


def check_measured(statistics: Statistics, path: Path, modules: Collection[ModuleName]) -> None:
    """Check that statistics cover modules.

    Raises:
        CheckpointError: they lack a module.
    """
    missing = [module for module in modules if module not in statistics]
    if missing:
        raise CheckpointError(
            f"{path} has no statistics for {len(missing)} modules, such as {missing[0]}: the model does not call them. "
            "Leave them out: ",
            Option("exclude"),
            f" '{missing[0]}'.",
        )
