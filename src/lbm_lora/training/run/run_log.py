"""Log the metrics of a run, with means and times, to TensorBoard, W&B, CSV, or nowhere."""

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.fabric.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch import Tensor

from lbm_lora.errors import ConfigError, MissingExtraError
from lbm_lora.missing_path import absolute_path
from lbm_lora.output_place import cannot_write
from lbm_lora.pinned_folder import PinnedFolder
from lbm_lora.progress import Pace, as_clock, warn
from lbm_lora.training.run.metrics_table import MetricsTable
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.settings.train_config import RunSettings

_PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard"}
_GRID = "validation/pictures"


class Meter:
    """Mean loss of the last forward passes, and the time per pass.

    Losses are summed on their device, without synchronisation until they are read.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._passes = 0
        self._since = 0.0

    def start(self) -> None:
        """Reset, and start the clock."""
        self._sum, self._passes, self._since = None, 0, time.monotonic()

    def add(self, loss: Tensor) -> None:
        """Record one forward pass."""
        self._sum = loss if self._sum is None else self._sum + loss
        self._passes += 1

    @contextmanager
    def paused(self) -> Generator[None]:
        """Exclude the time of a block."""
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before

    def read(self) -> tuple[Tensor, float]:
        """Return (mean loss, seconds per forward pass including all other work) since the last reading, and reset."""
        if self._sum is None:
            raise AssertionError("no forward pass was recorded")
        loss, seconds = self._sum / self._passes, (time.monotonic() - self._since) / self._passes
        self.start()
        return loss, seconds


class RunLog:
    """Logger of a run, in the first process.

    Args:
        settings: settings that choose the logger.
        folder: folder of the run.
        step: step from which the run resumes; TensorBoard drops entries of later steps.
    """

    def __init__(self, settings: RunSettings, folder: RunFolder, step: int) -> None:
        self._settings, self._folder, self._place = settings, folder, folder.logs
        self._logger = _open(settings, folder, step)
        self._pinned: PinnedFolder | None = None
        self._hook = threading.excepthook

    def __enter__(self) -> "RunLog":
        threading.excepthook = partial(_unless_tensorboard, self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        threading.excepthook = self._hook

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics by name, after a step."""
        if self._logger is not None:
            with self._writing() as logger:
                if isinstance(logger, MetricsTable):
                    logger.add(values, step)
                else:
                    logger.log_metrics(dict(values), step)

    def grid(self, images: Image.Image, path: Path, step: int) -> None:
        """Log the image grid of a validation, which is also in a file."""
        if isinstance(self._logger, TensorBoardLogger):
            with self._writing() as logger:
                logger.experiment.add_image(_GRID, np.asarray(images), step, dataformats="HWC")
        elif hasattr(self._logger, "log_image"):  # W&B's
            cast(Any, self._logger).log_image(_GRID, [str(path)], step)

    def close(self) -> None:
        """Flush what is still in memory."""
        if isinstance(self._logger, Logger):
            with self._writing() as logger:
                logger.finalize("success")

    @contextmanager
    def _writing(self) -> Generator[Any]:
        """Yield the logger; name the log in an error of the disk, of which Lightning makes a ValueError.

        Raises:
            OutputError: the disk is full.
        """
        self._follow()
        try:
            yield self._logger
            if self._pinned is None and self._place.exists():
                self._pinned = PinnedFolder(self._place)
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(reason, OSError):
                raise
            raise cannot_write(self._place, reason) from None

    def _follow(self) -> None:
        """Start a new log if its folder was moved or removed: losing a log must not end a training."""
        if self._pinned is None or self._pinned.is_at(self._place):
            return
        warn(f"{self._place} was moved or removed while a run was logging to it. The log goes on in a new folder.")
        if isinstance(self._logger, TensorBoardLogger):
            with suppress(OSError, ValueError):  # what it could not write to the folder that is gone
                self._logger.finalize("success")
        self._logger, self._pinned = _open(self._settings, self._folder, 0), None


def _unless_tensorboard(hook: Callable[[Any], object], failed: Any) -> None:
    """Report an error of a thread, but not of TensorBoard's: it is raised again at the next entry."""
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        hook(failed)


def step_line(step: int, total: int, loss: float, pace: Pace) -> str:
    """What the user reads after a step, behind `note: ` in 80 columns; gradient, rate and pace are in the log.

    Args:
        pace: of this part of the run, with the validations and saves in it.
    """
    left = "" if pace.left is None else f", {as_clock(pace.left)} left"
    return f"step {step:,} of {total:,}: loss {loss:.5f}, {as_clock(pace.elapsed)} elapsed{left}"


def check_logger(settings: RunSettings) -> None:
    """Check that the chosen logger is installed, and can write to the folder of the run.

    Raises:
        ConfigError: the folder's name means something else to it.
        MissingExtraError: its package is not installed.
    """
    folder = str(settings.save_ckpt_path)
    if settings.logger not in ("csv", "none") and "::" in folder:
        raise ConfigError(
            f"logger {settings.logger} takes save_ckpt_path {folder} for a URL. Choose a folder without ::, or set "
            "logger to csv or none."
        )
    package = _PACKAGES.get(settings.logger)
    if package is not None and find_spec(package) is None:
        raise MissingExtraError(
            f"logger {settings.logger} needs the package {package}, which is not installed: pip install {package}. "
            "Or set logger to csv or none."
        )


def _open(settings: RunSettings, folder: RunFolder, step: int) -> Logger | MetricsTable | None:
    # loggers go by fsspec, which takes what stands before a colon of a relative path for a file system
    root, name = absolute_path(folder.logs.parent), folder.logs.name
    if settings.logger == "tensorboard":
        return TensorBoardLogger(root, name=name, version="", purge_step=step + 1 if step else None)
    if settings.logger == "csv":
        return MetricsTable(folder.logs)
    if settings.logger == "wandb":
        from lightning.pytorch.loggers import WandbLogger  # Fabric has no W&B logger, but accepts this one

        return WandbLogger(project=settings.wandb_project, name=folder.path.name, save_dir=root)
    return None
