"""Lightning's trainer for a run: devices, processes, precision, and nothing that the run does itself."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy

from lbm_lora.errors import ConfigError
from lbm_lora.model.device import resolve_device
from lbm_lora.train.config import TrainConfig

_PRECISIONS: dict[str, Any] = {"bf16-mixed": "bf16-mixed", "32": "32-true"}
_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_NOT_OURS = (
    ".*does not have many workers.*",  # reading ahead is the user's choice
    ".*GPU available but not used.*",  # so is the device
    ".*module\\(s\\) in eval mode.*",  # the VAE
    ".*no `val_dataloader`.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)
"""Remarks of Lightning about what a run does on purpose."""


def make_trainer(config: TrainConfig) -> Trainer:
    """The trainer. Loops, saves, logs and bars are the run's own.

    Processes come from Lightning itself, or from whoever has started them (torchrun, SLURM, MPI ...), which it
    finds out by itself.

    Raises:
        ConfigError: Lightning refuses the devices or the strategy.
    """
    device = resolve_device(config.device)
    try:
        return Trainer(
            accelerator=device.type,
            devices=[device.index] if ":" in config.device else config.devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config),
            precision=_PRECISIONS[config.precision],
            accumulate_grad_batches=config.accumulate,
            max_epochs=1,  # one long epoch: see EpochStream
            default_root_dir=Path(config.save_ckpt_path),
            # a requeued job goes on from the run's own state; Lightning's would be the whole model
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
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


def _strategy(config: TrainConfig) -> Any:
    """Lightning's strategy. `fsdp` is FSDP2, which takes frozen and learning parameters of different dtypes."""
    processes = config.devices * config.num_nodes
    if config.strategy == "fsdp":
        return ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
    if config.strategy == "auto" and processes > 1:
        return "ddp"
    return config.strategy
