"""Lightning's trainer for one command: devices, processes, and nothing that the command does itself."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from lbm_lora.errors import ConfigError
from lbm_lora.model.device import resolve_device

_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_NOT_OURS = (
    ".*does not have many workers.*",  # reading ahead is the user's choice
    ".*GPU available but not used.*",  # so is the device
    ".*module\\(s\\) in eval mode.*",  # the VAE
    ".*no `val_dataloader`.*",
    ".*Total length of `DataLoader` across ranks is zero.*",  # all shards are there already
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)
"""Remarks of Lightning about what a command does on purpose."""


@runtime_checkable
class Processes(Protocol):
    """The part of a configuration that says what a command runs on."""

    @property
    def device(self) -> str: ...
    @property
    def devices(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def strategy(self) -> str: ...


def open_trainer(config: Processes, strategy: Any, folder: Path, **options: Any) -> Trainer:
    """A trainer without logs, bars and saves of its own.

    Processes come from Lightning itself, or from whoever has started them (torchrun, SLURM, MPI ...), which it
    finds out by itself.

    Args:
        strategy: what `config.strategy` stands for: Lightning's name of it, or the object.
        folder: of the command's results.
        options: further arguments of Lightning's `Trainer`.

    Raises:
        ConfigError: Lightning refuses the devices or the strategy.
    """
    device = resolve_device(config.device)
    try:
        return Trainer(
            accelerator=device.type,
            devices=[device.index] if ":" in config.device else config.devices,
            num_nodes=config.num_nodes,
            strategy=strategy,
            default_root_dir=folder,
            # a requeued job goes on from its own files; Lightning's would be the whole model
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **options,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"strategy {config.strategy} on {config.devices} x {config.num_nodes} {device.type}: "
            f"{' '.join(str(error).split())}"
        ) from None


@contextmanager
def quiet_lightning() -> Generator[None]:
    """Keep what Lightning says of itself, and of choices that are meant, from the user."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _NOT_OURS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
