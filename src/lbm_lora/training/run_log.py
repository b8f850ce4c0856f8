"""Log the metrics of a run, with means and times, to TensorBoard, W&B, CSV, or nowhere."""

import threading
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

from lbm_lora.errors import ConfigError, MissingExtraError, absolute_path
from lbm_lora.files import cannot_write
from lbm_lora.training.checkpoint import RunFolder
from lbm_lora.training.settings import RunSettings

_PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard"}
_GRID = "validation/pictures"


class Meter:
    """Mean loss of the last forward passes, and the time per pass.

    Losses are summed on their device, without synchronisation until they are read.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Reset, and start the clock."""
        self._sum: Tensor | float = 0.0
        self._passes, self._since = 0, time.monotonic()

    def add(self, loss: Tensor) -> None:
        """Record one forward pass."""
        self._sum = self._sum + loss
        self._passes += 1

    @contextmanager
    def paused(self) -> Generator[None]:
        """Exclude the time of a block."""
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
        """Log metrics by name, after a step."""
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
        """Flush what is still in memory."""
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


@contextmanager
def quiet_writer() -> Generator[None]:
    """Keep errors of TensorBoard's thread from stderr: they are raised again at the next entry."""
    hook = threading.excepthook

    def report(failed: Any) -> None:
        if type(failed.thread).__name__ != "_AsyncWriterThread":
            hook(failed)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = hook


def check_logger(settings: RunSettings) -> None:
    """Check that the chosen logger is installed, and can write to the folder of the run."""
    folder = str(settings.save_ckpt_path)
    if settings.logger != "none" and "::" in folder:
        raise ConfigError(
            f"logger {settings.logger} takes save_ckpt_path {folder} for a URL. Choose a folder without ::, or set "
            "logger to none."
        )
    package = _PACKAGES.get(settings.logger)
    if package is not None and find_spec(package) is None:
        raise MissingExtraError(
            f"logger {settings.logger} needs the package {package}, which is not installed: pip install {package}. "
            "Or set logger to csv or none."
        )
