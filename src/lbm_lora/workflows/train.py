"""Train a LoRA, new or continued, or the full denoiser, by a training file: the verb `train`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.configs.values import ForeignFormat
from lbm_lora.errors import ConfigError, Option, need_packages
from lbm_lora.hub import localized
from lbm_lora.progress import SILENT, Progress
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.settings.train_config import TrainConfig, read_train_config
from lbm_lora.workflows.twins import Twin, check_twins, write_twins

if TYPE_CHECKING:
    from lbm_lora.training.run.fit import FitResult
    from lbm_lora.training.run.validation import Scores

_PACKAGES = ("lightning", "peft")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Outcome of the run, and its files."""

    folder: Path
    last: Path | None
    """The newest LoRA (mode full: checkpoint); None if the run was stopped before its first step."""
    best: Path | None
    """The best by the chosen metric; None without validation pairs."""
    step: int
    """Completed optimizer steps, including those before a stop."""
    total: int
    learning: int
    """Number of trainable parameters."""
    loss: float
    """Mean loss of the last logged steps."""
    scores: "Scores | None"
    """Scores of the last validation."""
    best_step: int | None
    """Step of `best`."""
    stopped_by: str
    """The signal that stopped the run early, else empty."""
    seconds: float
    process: int
    """Number of this process; process 0 reports for all."""
    twins: tuple[Twin, ...] = ()
    """The last and the best LoRA in other formats, once the run is complete."""


def run(config: TrainRunConfig, progress: Progress = SILENT) -> TrainResult:
    """Train as the training file says.

    Raises:
        ConfigError: the training file, or an override; before anything else is read.
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind; see `lbm_lora.errors`.
        QualityError: the loss is no longer finite.
    """
    settings = read_train_config(config.path_config, config.overrides)
    _check_twins(settings, config.also)
    result = trained(settings, progress)
    loras = [] if result.stopped_by or result.process else [path for path in (result.last, result.best) if path]
    twins = [twin for lora in loras for twin in write_twins(lora, config.also, progress)]
    return replace(result, twins=tuple(twins))


def _check_twins(settings: TrainConfig, also: Sequence[ForeignFormat]) -> None:
    """Refuse twins of a run before it starts.

    Raises:
        ConfigError: the run trains the full denoiser.
        OutputError: a twin would overwrite an input.
    """
    if also and settings.mode == "full":
        raise ConfigError(Option("also"), " is for LoRAs, but mode full trains a checkpoint.")
    folder = RunFolder(settings.save_ckpt_path)
    inputs = [path for path in (settings.base_model_path, settings.lora_weights_path) if path is not None]
    check_twins([folder.last, folder.best], also, inputs)


def trained(settings: TrainConfig, progress: Progress) -> TrainResult:
    """Train as settings say; see `run`."""
    need_packages("training", _PACKAGES, "train")
    from lbm_lora.training.run.fit import fit

    settings = localized(settings, progress)
    return _result(fit(settings, _base(settings, progress), progress))


def _base(settings: TrainConfig, progress: Progress) -> Path:
    """Return the existing base, or make it from the backbone."""
    path = settings.base_model_path or settings.save_ckpt_path / "base.safetensors"
    from lbm_lora.workflows.base import ensure_base

    return ensure_base(
        path,
        backbone_signature=settings.backbone_signature,
        config_path=settings.config_path,
        progress=progress,
    )


def _result(fitted: "FitResult") -> TrainResult:
    folder, standing = fitted.folder, fitted.standing
    return TrainResult(
        folder=folder.path,
        last=folder.last if folder.last.exists() else None,
        best=folder.best if folder.best.exists() else None,
        step=standing.step,
        total=fitted.total,
        learning=fitted.learning,
        loss=standing.loss,
        scores=standing.scores,
        best_step=standing.best_step,
        stopped_by=standing.stopped_by,
        seconds=fitted.seconds,
        process=fitted.process,
    )
