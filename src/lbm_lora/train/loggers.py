"""Where the numbers of a run go: TensorBoard, W&B, CSV, or nowhere."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from lbm_lora.errors import MissingExtraError
from lbm_lora.train.folder import RunFolder
from lbm_lora.train.settings.run import RunSettings

_PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard"}


def check_logger(settings: RunSettings) -> None:
    """Raises:
    MissingExtraError: the package of the chosen logger is not installed.
    """
    package = _PACKAGES.get(settings.logger)
    if package is not None and find_spec(package) is None:
        raise MissingExtraError(
            f"logger {settings.logger} needs the package {package}, which is not installed: pip install {package}. "
            "Or set logger to csv or none."
        )


class RunLog:
    """The logger of a run, in the first process.

    Args:
        settings: which logger.
        folder: of the run.
        step: from which the run goes on; what TensorBoard has of later steps is dropped.
    """

    def __init__(self, settings: RunSettings, folder: RunFolder, step: int) -> None:
        self._logger = _open(settings, folder, step)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, after a step."""
        if self._logger is not None:
            self._logger.log_metrics(dict(values), step)

    def picture(self, image: Image.Image, path: Path, step: int) -> None:
        """The grid of a validation, which lies in a file as well."""
        if isinstance(self._logger, TensorBoardLogger):
            writer: Any = self._logger.experiment
            writer.add_image("validation/pictures", np.asarray(image), step, dataformats="HWC")
        elif isinstance(self._logger, WandbLogger):
            self._logger.log_image("validation/pictures", [str(path)], step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._logger is not None:
            self._logger.finalize("success")


def _open(settings: RunSettings, folder: RunFolder, step: int) -> Logger | None:
    root, name = folder.logs.parent, folder.logs.name
    if settings.logger == "tensorboard":
        return TensorBoardLogger(root, name=name, version="", purge_step=step + 1 if step else None)
    if settings.logger == "csv":
        return CSVLogger(root, name=name, flush_logs_every_n_steps=1)
    if settings.logger == "wandb":
        return WandbLogger(project=settings.wandb_project, name=folder.path.name, save_dir=root)
    return None
