"""One training run, from a configuration to a folder."""

import time
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.atomic import write_text
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.signals import StopRequest
from lbm_lora.train.config import TrainConfig
from lbm_lora.train.folder import RunFolder
from lbm_lora.train.loggers import check_logger
from lbm_lora.train.prepare import prepare
from lbm_lora.train.preview import Scores
from lbm_lora.train.trainer import make_trainer
from lbm_lora.train.watch import RunWatch
from lbm_lora.trainer import quiet_lightning


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a run has come to.

    Attributes:
        step, total: optimizer steps that are done, and of the whole run.
        learning: numbers that learn.
        loss: mean of the last logged steps; NaN where none was taken.
        scores: of the last validation.
        best_step: after which the validation was the best one; None without any.
        stopped_by: the signal that ended it before its end, else empty.
        rank: of this process; the first one, 0, writes the files.
    """

    folder: RunFolder
    step: int
    total: int
    learning: int
    loss: float
    scores: Scores | None
    best_step: int | None
    stopped_by: str
    seconds: float
    rank: int


def fit(config: TrainConfig, base_path: Path, progress: Progress = SILENT) -> Fitted:
    """Train.

    Args:
        base_path: of the base: `base_model_path`, or where it was made.

    Raises:
        InputError: of the kind that fits, before the model is built.
        QualityError: the loss is no number any more.
    """
    _check(config)
    began = time.monotonic()
    with quiet_lightning(), open_checkpoint(base_path) as base, StopRequest() as stop:
        trainer = make_trainer(config)
        progress = progress if trainer.is_global_zero else SILENT
        run = prepare(config, base, trainer, progress)
        watch = RunWatch(run.plan, progress, stop)
        learning = sum(parameter.numel() for parameter in run.module.trainee.parameters.values())
        if watch.step < run.plan.total:
            if trainer.is_global_zero:
                run.plan.folder.remove_parts()
                write_text(run.plan.folder.config, config.to_yaml())
            progress.note(f"{learning:,} parameters learn, {run.plan.total - watch.step:,} steps to go.")
            trainer.callbacks.append(watch)  # pyright: ignore[reportAttributeAccessIssue]
            trainer.fit(run.module)
        else:
            progress.note("the run is at its end already. To go on: raise max_steps or max_epochs.")
    return Fitted(
        folder=run.plan.folder,
        step=watch.step,
        total=run.plan.total,
        learning=learning,
        loss=watch.loss,
        scores=watch.scores,
        best_step=watch.best_step,
        stopped_by=watch.stopped_by,
        seconds=time.monotonic() - began,
        rank=trainer.global_rank,
    )


def _check(config: TrainConfig) -> None:
    """What can be found before anything is read."""
    config.check_files()
    check_logger(config)
    if config.base_dtype == "fp16":
        raise ConfigError("base_dtype fp16: training computes in bf16 or fp32. Set base_dtype to bf16 or float.")
    if config.precision == "32" and config.base_dtype != "float" and config.mode == "lora":
        raise ConfigError(
            "precision 32 computes in fp32, and base_dtype bf16 holds no more than bf16. Set base_dtype to float, or "
            "precision to bf16-mixed."
        )
