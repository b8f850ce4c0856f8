"""Train a LoRA, new or continued, or the whole denoiser, as a training file says: the verb `train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.errors import need_packages
from lbm_lora.progress import SILENT, Progress
from lbm_lora.training.settings.train_config import TrainConfig, read_train_config

if TYPE_CHECKING:
    from lbm_lora.training.run.fit import FitResult
    from lbm_lora.training.run.validation import Scores

_PACKAGES = ("lightning", "peft")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What the run has come to, and its files."""

    folder: Path
    last: Path | None
    """The newest LoRA (mode full: checkpoint); None where the run was stopped before its first step."""
    best: Path | None
    """The best by the chosen metric; None without validation pairs."""
    step: int
    """Optimizer steps that are done, those before a stop included."""
    total: int
    learning: int
    """Numbers that learn."""
    loss: float
    """Mean of the last logged steps."""
    scores: "Scores | None"
    """Of the last validation."""
    best_step: int | None
    """The step that `best` is of."""
    stopped_by: str
    """The signal that ended the run before its end, else empty."""
    seconds: float
    rank: int
    """Of this process among several; the first one, 0, speaks for all."""


def run(config: TrainRunConfig, progress: Progress = SILENT) -> TrainResult:
    """Train.

    Raises:
        ConfigError: the training file, or an override; before anything else is read.
        MissingExtraError: a package of the train extra is not installed.
        InputError: of the kind that fits; see `lbm_lora.errors`.
        QualityError: the loss is not finite any more.
    """
    return trained(read_train_config(config.path_config, config.overrides), progress)


def trained(settings: TrainConfig, progress: Progress) -> TrainResult:
    """Train as settings say; see `run`."""
    need_packages("training", _PACKAGES, "train")
    from lbm_lora.training.run.fit import fit

    return _result(fit(settings, _base(settings, progress), progress))


def _base(settings: TrainConfig, progress: Progress) -> Path:
    """The base that is there, or that is made of the backbone."""
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
        rank=fitted.rank,
    )
