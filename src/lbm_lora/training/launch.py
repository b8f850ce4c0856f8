"""Fabric for one command: its device, its processes, and how they share a network.

Processes come from Fabric, or from whoever has started them (torchrun, SLURM, MPI ...), which it finds out by itself.
Fabric starts them by running the same command again, once `Fabric.launch` is called. Until then the first process is
alone, and what is wrong with the input is said once.
"""

import logging
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies import ModelParallelStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lbm_lora.errors import ConfigError
from lbm_lora.model.device import resolve_device
from lbm_lora.runtime import share_cores

Parallelize = Callable[[Any, Any], Any]
"""Function of (module, device mesh) that returns the module with its parameters sharded."""


def open_fabric(
    device: str, devices: int = 1, num_nodes: int = 1, strategy: str = "auto", parallelize: Parallelize | None = None
) -> Fabric:
    """Return Fabric on so many devices of each machine; its processes are not started yet.

    Its precision is fp32. The plugins for others cast everything that goes into a network, and a timestep of 999 does
    not exist in bf16; who wants to compute in bf16 does so under torch's autocast.

    `parallelize` is what the strategy `fsdp` (FSDP2, which takes frozen and trainable parameters of different dtypes)
    does with a module; see `shard`.
    """
    kind = resolve_device(device)
    share_cores(max(1, devices))
    sharing: Any = strategy
    if strategy == "fsdp" and parallelize:
        count = devices * num_nodes
        sharing = ModelParallelStrategy(parallelize, data_parallel_size=count, tensor_parallel_size=1)
    try:
        return Fabric(
            accelerator=kind.type,
            devices=[kind.index] if ":" in str(kind) else devices,
            num_nodes=num_nodes,
            strategy=sharing,
            # a requeued job goes on from its own files; Lightning's would be the model's
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"strategy {strategy} on {devices} x {num_nodes} {kind.type}: {' '.join(str(error).split())}"
        ) from None


def is_sharded(fabric: Fabric) -> bool:
    """Return whether each process holds only a part of the parameters."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def shard(network: nn.Module, blocks: Collection[str], mesh: Any) -> None:
    """Give each process on a device mesh a part of a network's parameters, gathered block by block while it computes.

    The parameters of a module of the classes `blocks` are gathered together; the rest is one more block.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # torch < 2.6
        from torch.distributed._composable.fsdp import fully_shard
    among = mesh["data_parallel"]
    for module in network.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=among)
    fully_shard(network, mesh=among)


def drop_gathered(network: nn.Module) -> None:
    """Drop gathered parameters, which the outermost block keeps after a forward pass without a backward one.

    Otherwise the next forward pass would not see that the parts have changed in between.
    """
    for module in network.modules():
        reshard = getattr(module, "reshard", None)  # of sharded modules
        if reshard is not None:
            reshard()


@contextmanager
def quiet_lightning() -> Generator[None]:
    """Keep what Fabric says of itself from the user; its warnings come through."""
    logger = logging.getLogger("lightning.fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
