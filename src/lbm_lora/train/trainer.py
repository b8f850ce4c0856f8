"""Lightning's trainer for a run: its loops, precision and strategy."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lbm_lora.train.config import TrainConfig
from lbm_lora.trainer import open_trainer

_PRECISIONS: dict[str, Any] = {"bf16-mixed": "bf16-mixed", "32": "32-true"}


def make_trainer(config: TrainConfig) -> Trainer:
    """The trainer. Loops, saves, logs and bars are the run's own.

    Raises:
        ConfigError: Lightning refuses the devices or the strategy.
    """
    return open_trainer(
        config,
        _strategy(config),
        config.save_ckpt_path,
        precision=_PRECISIONS[config.precision],
        accumulate_grad_batches=config.accumulate,
        max_epochs=1,  # one long epoch: see EpochStream
        limit_val_batches=0,
    )


def _strategy(config: TrainConfig) -> Any:
    """Lightning's strategy. `fsdp` is FSDP2, which takes frozen and learning parameters of different dtypes."""
    processes = config.devices * config.num_nodes
    if config.strategy == "fsdp":
        return ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
    if config.strategy == "auto" and processes > 1:
        return "ddp"
    return config.strategy
