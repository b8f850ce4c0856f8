"""Prepare statistics for an extraction: the output norm, and a network to try LoRAs in."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from lbm_lora.calibration.statistics import Statistics
from lbm_lora.checkpoint import Component, fingerprint
from lbm_lora.errors import CheckpointError, Option
from lbm_lora.extraction import Plan
from lbm_lora.fidelity.trial import LoraTrial
from lbm_lora.naming import ModuleName
from lbm_lora.progress import Progress
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
    _check(statistics, path, plan.pairing.tuned, list(plan.shapes()))
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
        energy=statistics.output_energy,
        open_trial=open_trial,
    )


def _check(statistics: Statistics, path: Path, tuned: Component, modules: Collection[ModuleName]) -> None:
    """Check that statistics belong to a tuned model.

    Args:
        modules: modules that must have been measured.

    Raises:
        CheckpointError: they are of another model, or lack a module.
    """
    if statistics.origin.tuned != fingerprint(tuned).digest:
        raise CheckpointError(
            f"{path} was measured on another model than {tuned.path}. Create it for this one: lbm-lora calibrate ",
            Option("tuned_model_path"),
            f" {tuned.path} ...",
        )
    missing = [module for module in modules if module not in statistics]
    if missing:
        raise CheckpointError(
            f"{path} has no statistics for {len(missing)} modules, such as {missing[0]}: the model does not call them. "
            "Leave them out: ",
            Option("exclude"),
            f" '{missing[0]}'.",
        )
