"""Statistics as an extraction uses them: the norm of the output, and a network to try LoRAs in."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from lbm_lora.calibration.statistics import Statistics
from lbm_lora.calibration.statistics_file import load_statistics
from lbm_lora.checkpoint import Component, fingerprint
from lbm_lora.errors import CheckpointError, Option
from lbm_lora.extraction import OutputNorm, Plan, Trial
from lbm_lora.fidelity.trial import LoraTrial
from lbm_lora.naming import ModuleName
from lbm_lora.progress import Progress


def output_norm(
    statistics_path: Path,
    plan: Plan,
    *,
    tuned_model_path: Path,
    config_path: Path | None,
    images: Sequence[Path],
    is_checked: bool,
    device: torch.device,
    progress: Progress,
) -> OutputNorm:
    """Errors weighed by what they cost in the tuned model's output.

    Args:
        images: that LoRAs are tried on.
        is_checked: try LoRAs at the check points of the statistics, too.

    Raises:
        CheckpointError: the statistics cannot be read, are of another model, or know nothing of a module.
    """
    statistics = _statistics_for(statistics_path, plan.pairing.tuned, list(plan.shapes()))
    points = statistics.check_points if is_checked else ()

    def open_trial() -> Trial | None:
        if not points and not images:
            return None
        return LoraTrial(
            tuned_model_path,
            plan.pairing.base,
            points=points,
            images=images,
            config_path=config_path,
            device=device,
            progress=progress,
        )

    return OutputNorm(
        name=statistics_path.name,
        weights_of=statistics.__getitem__,
        energy=statistics.output_energy,
        open_trial=open_trial,
    )


def _statistics_for(path: Path, tuned: Component, modules: Collection[ModuleName]) -> Statistics:
    """Statistics that belong to a tuned model.

    Args:
        modules: that must have been measured.

    Raises:
        CheckpointError: the file cannot be read, or is of another model, or knows nothing of a module.
    """
    statistics = load_statistics(path)
    if statistics.origin.tuned != fingerprint(tuned).digest:
        raise CheckpointError(
            f"{path} was measured on another model than {tuned.path}. Make it for this one: lbm-lora calibrate ",
            Option("tuned_model_path"),
            f" {tuned.path} ...",
        )
    missing = [module for module in modules if module not in statistics]
    if missing:
        raise CheckpointError(
            f"{path} knows nothing of {len(missing)} modules, {missing[0]} the first: the model does not call them. "
            "Leave them out: ",
            Option("exclude"),
            f" '{missing[0]}'.",
        )
    return statistics
