"""Run one training, from a configuration to a folder."""

import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError, DataError
from lbm_lora.files import is_same
from lbm_lora.progress import SILENT, Progress
from lbm_lora.runtime import StopRequest
from lbm_lora.training.checkpoint import RunFolder
from lbm_lora.training.launch import open_fabric, quiet_lightning, shard
from lbm_lora.training.learner import check_optimizer
from lbm_lora.training.loop import Standing, TrainingLoop, is_complete, standing_of
from lbm_lora.training.loss import BatchLoss
from lbm_lora.training.prepare import PreparedRun
from lbm_lora.training.run_log import check_logger
from lbm_lora.training.settings import TrainConfig

_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of the denoiser whose parameters fsdp gathers together."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Outcome of a run: its position and metrics, of `total` optimizer steps, and the number of trained parameters.

    `process` is the number of this process; process 0 writes the files.
    """

    folder: RunFolder
    standing: Standing
    total: int
    learning: int
    seconds: float
    process: int


def fit(
    config: TrainConfig, base_path: Path, progress: Progress = SILENT, *, path_config: Path | None = None
) -> FitResult:
    """Train as configured.

    Args:
        base_path: path of the base: `base_model_path`, or where it was created.
        path_config: the training file, if there is one: that of a run which goes on stays as the user has left it.
    """
    config.check_files()
    check_logger(config.logger)
    _check_dtypes(config)
    began, folder = time.monotonic(), RunFolder(config.save_ckpt_path)
    with quiet_lightning(), open_checkpoint(base_path) as base, StopRequest() as stop:
        fabric = open_fabric(config.device, config.devices, config.num_nodes, config.strategy, _parallelized)
        check_optimizer(config, fabric.device)
        progress = progress if fabric.is_global_zero else SILENT
        with folder.held() if fabric.is_global_zero else nullcontext():
            run = PreparedRun(config, base, fabric, progress)
            learning = sum(parameter.numel() for parameter in run.trainee.parameters.values())
            standing = standing_of(run.state)
            if is_complete(run):
                progress.note("the run is already complete. To continue it, raise max_steps or max_epochs.")
            else:
                progress.note(f"{learning:,} trainable parameters, {run.left:,} steps left.")
                fabric.launch()
                keeps_config = path_config is not None and is_same(folder.config, path_config)
                with _named_loss(fabric.world_size):
                    standing = TrainingLoop(run, fabric, progress, stop, keeps_config=keeps_config).train()
    return FitResult(
        folder=folder,
        standing=standing,
        total=run.total,
        learning=learning,
        seconds=time.monotonic() - began,
        process=fabric.global_rank,
    )


@contextmanager
def _named_loss(world: int) -> Generator[None]:
    """Name the loss of another of several processes, which reaches this one as a lost connection."""
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, distributed.DistError) or "gloo/transport" in str(error)
        if world == 1 or not is_lost:
            raise
        raise DataError(
            "another process of this run has ended. Start the run again to go on from its last save."
        ) from None


def _check_dtypes(config: TrainConfig) -> None:
    if config.base_dtype == "fp16":
        raise ConfigError("base_dtype must be bf16 or float, got fp16: training computes in bf16 or fp32.")
    if config.precision == "32" and config.base_dtype != "float" and config.mode == "lora":
        raise ConfigError(
            "precision 32 computes in fp32, but base_dtype bf16 stores only bf16. Set base_dtype to float, or "
            "precision to bf16-mixed."
        )


def _parallelized(batch_loss: BatchLoss, mesh: Any) -> BatchLoss:
    """Shard the denoiser; replicate everything else in every process."""
    shard(batch_loss.denoiser, _BLOCKS, mesh)
    return batch_loss.to(mesh.device_type)
