"""Run one training, from a configuration to a folder."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from lbm_lora.atomic import write_text
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError, DataError
from lbm_lora.launch import open_fabric, quiet_lightning, shard
from lbm_lora.ownership import RUN_LINE
from lbm_lora.progress import SILENT, Progress
from lbm_lora.regular_file import is_same
from lbm_lora.signals import StopRequest
from lbm_lora.training.loss.step import BatchLoss
from lbm_lora.training.run.loop import TrainingLoop
from lbm_lora.training.run.optimizer import check_optimizer
from lbm_lora.training.run.prepare import prepare
from lbm_lora.training.run.resume import was_cut_off
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.run.run_log import check_logger
from lbm_lora.training.run.standing import Standing, standing_of
from lbm_lora.training.settings.train_config import TrainConfig

_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of the denoiser whose parameters fsdp gathers together."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Outcome of a run.

    Attributes:
        standing: its position and metrics.
        total: optimizer steps of the complete run, including earlier parts.
        learning: number of trainable parameters.
        process: number of this process; process 0 writes the files.
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

    Raises:
        InputError: a subclass that fits the cause, before the model is built.
        QualityError: the loss is no longer finite.
    """
    _check(config)
    began = time.monotonic()
    with quiet_lightning(), open_checkpoint(base_path) as base, StopRequest() as stop:
        fabric = open_fabric(config, _parallelized)
        check_optimizer(config, fabric.device)
        progress = progress if fabric.is_global_zero else SILENT
        found = RunFolder(config.save_ckpt_path).marks()
        run = prepare(config, base, fabric, progress)
        standing = standing_of(run.state)
        learning = sum(parameter.numel() for parameter in run.trainee.parameters.values())
        is_scored = run.validator is None or run.state is None or run.state.validated == run.done
        if run.left or not is_scored or was_cut_off(run.state, run.folder):
            with run.folder.held() if fabric.is_global_zero else nullcontext(_no_check) as check_folder:
                if fabric.is_global_zero:
                    run.folder.check_same(found)
                    run.folder.remove_parts()
                progress.note(f"{learning:,} trainable parameters, {run.left:,} steps left.")
                fabric.launch()
                written = _RunConfig(run.folder, config, path_config, check_folder, is_writer=fabric.is_global_zero)
                loop = TrainingLoop(run, fabric, progress, stop, written.check_folder, written.saved)
                if fabric.is_global_zero:
                    run.folder.check_same(found)  # what has come before the loop took note of its own files
                with _named_loss(fabric.world_size):
                    loop.train()
                standing = loop.standing
        else:
            progress.note("the run is already complete. To continue it, raise max_steps or max_epochs.")
    return FitResult(
        folder=run.folder,
        standing=standing,
        total=run.total,
        learning=learning,
        seconds=time.monotonic() - began,
        process=fabric.global_rank,
    )


class _RunConfig:
    """Write the run's configuration to its folder with its first save: until then that of an earlier part stays."""

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        path_config: Path | None,
        check_folder: Callable[[], None],
        *,
        is_writer: bool,
    ) -> None:
        """Take a configuration.

        Args:
            path_config: the file that it was read from, which is not written over.
            check_folder: checks that the run still holds its folder.
            is_writer: whether this process writes, which only the first does.
        """
        self._folder, self._config, self._path_config, self._check_folder = folder, config, path_config, check_folder
        self._is_writer, self._is_first = is_writer, True

    def check_folder(self) -> None:
        """Check that the run still holds its folder; there is a configuration in it afterwards."""
        self._check_folder()
        if self._is_writer and not self._folder.config.exists():
            self._write()

    def saved(self) -> None:
        """Take notice of a save."""
        if self._is_first:
            self._write()

    def _write(self) -> None:
        if self._path_config is None or not is_same(self._folder.config, self._path_config):
            write_text(self._folder.config, f"{RUN_LINE}{self._config.to_yaml()}")
        self._is_first = False


@contextmanager
def _named_loss(world: int) -> Generator[None]:
    """Name the loss of another of several processes, which reaches this one as a lost connection.

    Raises:
        DataError: it has ended.
    """
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, distributed.DistError) or "gloo/transport" in str(error)
        if world == 1 or not is_lost:
            raise
        raise DataError(
            "another process of this run has ended. Start the run again to go on from its last save."
        ) from None


def _no_check() -> None:
    """Check nothing: processes other than the first write nothing."""


def _check(config: TrainConfig) -> None:
    """Check everything that can be checked before anything is read."""
    config.check_files()
    check_logger(config)
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
