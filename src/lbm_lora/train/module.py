"""The Lightning side of a run: a thin module around `BridgeStep`, and the endless stream of its batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import xxhash
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler

from lbm_lora.train.config import TrainConfig
from lbm_lora.train.data import Batch, BucketBatches, Draw
from lbm_lora.train.optim import make_optimizer, rate_factor
from lbm_lora.train.step import BridgeStep
from lbm_lora.train.trainee import Trainee


class TrainingModule(LightningModule):
    """What Lightning moves to the device, runs and optimises.

    Args:
        step: the loss; its model is on the CPU.
        trainee: what of the model learns.
        done: optimizer steps of an earlier part of the run.
        total: optimizer steps of the whole run.
        open_loader: makes the training batches once the processes stand and the model is on its device.
    """

    def __init__(
        self,
        step: BridgeStep,
        trainee: Trainee,
        config: TrainConfig,
        *,
        done: int,
        total: int,
        open_loader: Callable[["TrainingModule"], DataLoader[Batch]],
    ) -> None:
        super().__init__()
        self.denoiser = step.model.denoiser
        self.vae = step.model.vae
        self.step = step
        self.trainee = trainee
        self.gradient_norm: Tensor | None = None
        self._settings = config
        self._done = done
        self._total = total
        self._open_loader = open_loader
        self._learning: dict[str, nn.Parameter] | None = None

    @property
    def learning(self) -> Mapping[str, nn.Parameter]:
        """What learns, by name, as it stands on the device."""
        if self._learning is None:
            self._learning = self.trainee.parameters
        return self._learning

    def configure_model(self) -> None:
        """Shard the denoiser over the processes where the strategy gives a mesh for it (FSDP2)."""
        if self.device_mesh is not None and self._learning is None:
            shard(self.denoiser, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        self.denoiser.train()
        self.step = replace(self.step, model=replace(self.step.model, device=self.device))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._open_loader(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._settings.lora_dropout:
            torch.manual_seed(self._dropout_seed(self._done * self._settings.accumulate + batch_idx))
        return self.step.losses(batch).mean()

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.learning, self._settings)
        schedule = LambdaLR(optimizer, lambda k: rate_factor(self._settings, self._done + k, self._total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """torch's own clipping: Lightning's refuses sharded parameters and fused optimizers."""
        largest = self._settings.gradient_clip or float("inf")
        self.gradient_norm = nn.utils.clip_grad_norm_(list(self.learning.values()), largest)

    def _dropout_seed(self, forward_pass: int) -> int:
        text = f"dropout {self._settings.seed} {forward_pass} {self.global_rank}"
        return xxhash.xxh64_intdigest(text.encode()) >> 1


class EpochStream(Sampler[list[Draw]]):
    """The batches of one epoch after the other, from a position on.

    Lightning sees one long epoch: where a run stands in the data is kept by the run itself, so that it can go on in
    the middle of an epoch.
    """

    def __init__(self, batches: BucketBatches, *, epoch: int, batch: int, epochs: int) -> None:
        self._batches = batches
        self._epoch = epoch
        self._batch = batch
        self._epochs = epochs

    def __iter__(self) -> Iterator[list[Draw]]:
        for epoch in range(self._epoch, self._epochs):
            self._batches.set_epoch(epoch)
            self._batches.start(self._batch if epoch == self._epoch else 0)
            yield from self._batches


def total_steps(batches: BucketBatches, config: TrainConfig) -> int:
    """Optimizer steps of a whole run; the forward passes that do not fill the last one are left out."""
    steps = batches.steps * config.max_epochs // config.accumulate
    return steps if config.max_steps is None else min(steps, config.max_steps)


def shard(denoiser: nn.Module, mesh: Any) -> None:
    """Give each process a part of every block's parameters, gathered while the block computes."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # torch < 2.6
        from torch.distributed._composable.fsdp import fully_shard
    kinds = ("BasicTransformerBlock", "ResnetBlock2D")
    for module in denoiser.modules():
        if type(module).__name__ in kinds:
            fully_shard(module, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def drop_gathered(denoiser: nn.Module) -> None:
    """Let go of gathered parameters, which the outermost group keeps after a forward pass without a backward one.

    Else the next forward pass would not see that the parts have been changed in between.
    """
    for module in denoiser.modules():
        reshard = getattr(module, "reshard", None)  # of FSDP2's modules
        if reshard is not None:
            reshard()
