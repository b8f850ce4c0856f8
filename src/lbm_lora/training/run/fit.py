"""One training run, from a configuration to a folder."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbm_lora.atomic import write_text
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.launch import open_fabric, quiet_lightning, shard
from lbm_lora.progress import SILENT, Progress
from lbm_lora.signals import StopRequest
from lbm_lora.training.loss.step import BatchLoss
from lbm_lora.training.run.loop import Standing, TrainingLoop, standing_of
from lbm_lora.training.run.prepare import prepare
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.run.run_log import check_logger
from lbm_lora.training.settings.train_config import TrainConfig

_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of the denoiser whose parameters are gathered together where the strategy is fsdp."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run has come to.

    Attributes:
        standing: where it stands.
        total: optimizer steps of the run from its very start to its end.
        learning: numbers that learn.
        rank: of this process; the first one, 0, writes the files.
    """

    folder: RunFolder
    standing: Standing
    total: int
    learning: int
    seconds: float
    rank: int


def fit(config: TrainConfig, base_path: Path, progress: Progress = SILENT) -> FitResult:
    """Train.

    Args:
        base_path: of the base: `base_model_path`, or where it was made.

    Raises:
        InputError: of the kind that fits, before the model is built.
        QualityError: the loss is not finite any more.
    """
    _check(config)
    began = time.monotonic()
    with quiet_lightning(), open_checkpoint(base_path) as base, StopRequest() as stop:
        fabric = open_fabric(config, _parallelized)
        progress = progress if fabric.is_global_zero else SILENT
        run = prepare(config, base, fabric, progress)
        standing = standing_of(run.state)
        learning = sum(parameter.numel() for parameter in run.trainee.parameters.values())
        if run.done < run.total:
            if fabric.is_global_zero:
                run.folder.remove_parts()
                write_text(run.folder.config, config.to_yaml())
            progress.note(f"{learning:,} parameters learn, {run.total - run.done:,} steps to go.")
            fabric.launch()
            loop = TrainingLoop(run, fabric, progress, stop)
            loop.train()
            standing = loop.standing
        else:
            progress.note("the run is at its end already. To go on: raise max_steps or max_epochs.")
    return FitResult(
        folder=run.folder,
        standing=standing,
        total=run.total,
        learning=learning,
        seconds=time.monotonic() - began,
        rank=fabric.global_rank,
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


def _parallelized(batch_loss: BatchLoss, mesh: Any) -> BatchLoss:
    """The denoiser in parts; everything else in every process."""
    shard(batch_loss.denoiser, _BLOCKS, mesh)
    return batch_loss.to(mesh.device_type)
