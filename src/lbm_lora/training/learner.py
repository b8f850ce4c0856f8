"""Train on a device: forward and backward passes, the optimizer's steps, its schedule, the average of the weights."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import Any

import torch
import xxhash
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lbm_lora.training.checkpoint import Values, copied, optimizer_state, restore
from lbm_lora.training.data.dataset import Batch
from lbm_lora.training.launch import drop_gathered, is_sharded
from lbm_lora.training.loss import BatchLoss
from lbm_lora.training.optimizer import make_optimizer, rate_factor
from lbm_lora.training.prepare import PreparedRun


class Learner:
    """Trainable part of a run's model, which is put on the device of Fabric, with its optimizer.

    Attributes:
        loss: the run's loss with the model on its device, for computations outside training.
        gradient_norm: gradient norm of the last step, before clipping.
    """

    def __init__(self, run: PreparedRun, fabric: Fabric) -> None:
        config = run.config
        self.loss = replace(run.loss, model=replace(run.loss.model, device=fabric.device))
        self.gradient_norm = torch.zeros(())
        self._config, self._fabric = config, fabric
        self._denoiser = self.loss.model.denoiser
        self._batch_loss = fabric.setup_module(BatchLoss(self.loss))
        self._denoiser.train()
        self._learning = run.trainee.parameters
        self._optimizer = make_optimizer(self._learning, config)
        self._schedule = LambdaLR(self._optimizer, lambda k: rate_factor(config, run.done + k, run.total))
        self._average: Values | None = None
        if config.ema_decay is not None:
            self._average = {name: parameter.detach().clone() for name, parameter in self._learning.items()}
        if run.state is not None:
            restore(run.state, self._learning, self._optimizer, self._average)

    def add_gradients(self, batch: Batch, *, step: int, index: int) -> Tensor:
        """Run one forward and backward pass of a step; return the mean loss of the batch, without gradients.

        Args:
            step: optimizer step, from 0.
            index: index of the pass within the step, from 0 to `accumulate` - 1.
        """
        fabric, accumulate = self._fabric, self._config.accumulate
        if self._config.lora_dropout:
            text = f"dropout {self._config.seed} {step * accumulate + index} {fabric.global_rank}"
            torch.manual_seed(xxhash.xxh64_intdigest(text.encode()) >> 1)
        # sharded gradients are reduced at once: those of all parameters might not fit on one device
        waits = index < accumulate - 1 and not is_sharded(fabric)
        with fabric.no_backward_sync(self._batch_loss, enabled=waits):
            loss = self._batch_loss(batch.to(fabric.device, non_blocking=True))
            fabric.backward(loss / accumulate)
        return loss.detach()

    def take_step(self, step: int) -> None:
        """Clip the gradients, take an optimizer step, from 0, and advance the schedule and the average.

        The decay of the average is at most (1 + step) / (10 + step), so that the first weights do not dominate for
        long.
        """
        learning = list(self._learning.values())
        self.gradient_norm = nn.utils.clip_grad_norm_(learning, self._config.gradient_clip or inf)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        if self._average is not None:
            average = get_ema_multi_avg_fn(min(self._config.ema_decay or 0.0, (1 + step) / (10 + step)))
            average(list(self._average.values()), [parameter.detach() for parameter in learning], step)

    @contextmanager
    def evaluation(self) -> Generator[None]:
        """Switch the model to evaluation mode, with the averaged weights that would be saved, until the block ends."""
        held = {name: value.detach().clone() for name, value in self._learning.items()} if self._average else {}
        self._denoiser.eval()
        try:
            self._put(self._average or {})
            with self.loss.autocast():
                yield
        finally:
            drop_gathered(self._denoiser)
            self._put(held)
            self._denoiser.train()

    def result(self) -> Values:
        """Return copies of the values to save, averaged if there is an average; every process must call this."""
        return copied(self._average or self._learning)

    def state(self) -> dict[str, Any]:
        """Return the fields `values`, `optimizer` and `average` of a `TrainState`; every process must call this."""
        return {
            "values": copied(self._learning),
            "optimizer": optimizer_state(self._optimizer, self._learning),
            "average": copied(self._average) if self._average else None,
        }

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._learning[name].copy_(value)
