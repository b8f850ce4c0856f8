"""Statistics as an extraction uses them: the norm of the output, and a network to try LoRAs in."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from lbm_lora.calibration.statistics import Statistics
from lbm_lora.checkpoint import Component, fingerprint
from lbm_lora.errors import CheckpointError, Option
from lbm_lora.extraction import OutputNorm, Plan, Trial
from lbm_lora.fidelity.trial import LoraTrial
from lbm_lora.naming import ModuleName
from lbm_lora.progress import Progress


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
    """Errors weighed by what they cost in the tuned model's output.

    Args:
        path: of the statistics' file, or what messages call them.
        images: that LoRAs are tried on.
        is_checked: try LoRAs at the check points of the statistics, too.

    Raises:
        CheckpointError: the statistics are of another model, or know nothing of a module.
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
    """Whether statistics belong to a tuned model.

    Args:
        modules: that must have been measured.

    Raises:
        CheckpointError: they are of another model, or know nothing of a module.
    """
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
