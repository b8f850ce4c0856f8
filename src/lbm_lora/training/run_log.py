"""Log the metrics of a run, with means and times, to TensorBoard, W&B, CSV, or nowhere."""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.fabric.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from torch import Tensor

from lbm_lora.errors import MissingExtraError, absolute_path
from lbm_lora.files import cannot_write
from lbm_lora.training.checkpoint import RunFolder
from lbm_lora.training.settings import RunSettings

_GRID = "validation/pictures"


class Meter:
    """Mean loss of the last forward passes, summed on their device without synchronisation, and the time per pass."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Reset, and start the clock."""
        self._sum: Tensor | float = 0.0
        self._passes, self._since = 0, time.monotonic()

    def add(self, loss: Tensor) -> None:
        self._sum = self._sum + loss
        self._passes += 1

    @contextmanager
    def paused(self) -> Generator[None]:
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before

    def read(self) -> tuple[Tensor, float]:
        """Return (mean loss, seconds per forward pass including all other work) since the last reading, and reset."""
        loss, seconds = self._sum / self._passes, (time.monotonic() - self._since) / self._passes
        self.start()
        return cast(Tensor, loss), seconds


class RunLog:
    """Logger of a run, in the first process. TensorBoard drops entries after the step from which the run resumes."""

    def __init__(self, settings: RunSettings, folder: RunFolder, step: int) -> None:
        # loggers go by fsspec, which takes what stands before a colon of a relative path for a file system
        self._place, root = folder.logs, absolute_path(folder.path)
        self._logger: Logger | None = None
        if settings.logger == "tensorboard":
            self._logger = TensorBoardLogger(root, name="logs", version="", purge_step=step + 1 if step else None)
        elif settings.logger == "csv":
            self._logger = CSVLogger(root, name="logs", flush_logs_every_n_steps=1)
        elif settings.logger == "wandb":
            from lightning.pytorch.loggers import WandbLogger  # Fabric has no W&B logger, but accepts this one

            self._logger = WandbLogger(project=settings.wandb_project, name=folder.path.name, save_dir=root)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if self._logger is not None:
            with self._writing():
                self._logger.log_metrics(dict(values), step)

    def grid(self, images: Image.Image, path: Path, step: int) -> None:
        """Log the image grid of a validation, which is also in a file."""
        with self._writing():
            if isinstance(self._logger, TensorBoardLogger):
                self._logger.experiment.add_image(_GRID, np.asarray(images), step, dataformats="HWC")
            elif hasattr(self._logger, "log_image"):  # W&B's
                cast(Any, self._logger).log_image(_GRID, [str(path)], step)

    def close(self) -> None:
        if self._logger is not None:
            with self._writing():
                self._logger.finalize("success")

    @contextmanager
    def _writing(self) -> Generator[None]:
        """Name the log in an error of the disk, of which Lightning makes a ValueError."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(reason, OSError):
                raise
            raise cannot_write(self._place, reason) from None


def check_logger(logger: str) -> None:
    """Check that the chosen logger is installed."""
    if logger in ("wandb", "tensorboard") and find_spec(logger) is None:
        raise MissingExtraError(
            f"logger {logger} needs the package {logger}, which is not installed: pip install {logger}. "
            "Or set logger to csv or none."
        )
