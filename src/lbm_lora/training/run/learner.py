"""Train on a device: forward and backward passes, the optimizer's steps, its schedule, and the average of the weights.

The schedule is our own code, the average is torch's.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import cos, inf, pi
from typing import Any

import torch
import xxhash
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lbm_lora.launch import drop_gathered, is_sharded
from lbm_lora.trainable.state import Values, copied, optimizer_state, restore
from lbm_lora.training.data import Batch
from lbm_lora.training.loss.step import BatchLoss
from lbm_lora.training.run.optimizer import make_optimizer
from lbm_lora.training.run.prepare import PreparedRun
from lbm_lora.training.settings.learning_keys import OptimizerSettings


class Learner:
    """Trainable part of a run's model, with its optimizer.

    Args:
        fabric: its processes are started; the model is put on its device.

    Attributes:
        loss: the run's loss with the model on its device, for computations outside training.
        gradient_norm: gradient norm of the last step, before clipping.
    """

    def __init__(self, run: PreparedRun, fabric: Fabric) -> None:
        config, state = run.config, run.state
        self.loss = replace(run.loss, model=replace(run.loss.model, device=fabric.device))
        self.gradient_norm = torch.zeros(())
        self._config = config
        self._fabric = fabric
        self._denoiser = self.loss.model.denoiser
        self._batch_loss = fabric.setup_module(BatchLoss(self.loss))
        self._denoiser.train()
        self._learning = run.trainee.parameters
        self._optimizer = make_optimizer(self._learning, config)
        self._schedule = LambdaLR(self._optimizer, lambda k: rate_factor(config, run.done + k, run.total))
        self._average = None if config.ema_decay is None else Average(self._learning, config.ema_decay)
        if state is not None:
            restore(state, self._learning, self._optimizer, self._average.values if self._average else None)

    def add_gradients(self, batch: Batch, *, step: int, index: int) -> Tensor:
        """Run one forward and backward pass of a step; return the mean loss of the batch, without gradients.

        Args:
            step: optimizer step, from 0.
            index: index of the pass within the step, from 0 to `accumulate` - 1.
        """
        fabric, accumulate = self._fabric, self._config.accumulate
        if self._config.lora_dropout:
            torch.manual_seed(self._dropout_seed(step * accumulate + index))
        # sharded gradients are reduced at once: those of all parameters might not fit on one device
        waits = index < accumulate - 1 and not is_sharded(fabric)
        with fabric.no_backward_sync(self._batch_loss, enabled=waits):
            loss = self._batch_loss(batch.to(fabric.device, non_blocking=True))
            fabric.backward(loss / accumulate)
        return loss.detach()

    def take_step(self, step: int) -> None:
        """Clip the gradients, take an optimizer step, and advance the schedule and the average.

        Args:
            step: optimizer step, from 0.
        """
        learning = list(self._learning.values())
        self.gradient_norm = nn.utils.clip_grad_norm_(learning, self._config.gradient_clip or inf)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        if self._average is not None:
            self._average.update(self._learning, step)

    @contextmanager
    def evaluation(self) -> Generator[None]:
        """Switch the model to evaluation mode, with the averaged weights that would be saved, until the block ends."""
        held = {name: value.detach().clone() for name, value in self._learning.items()} if self._average else {}
        self._denoiser.eval()
        try:
            self._put(self._average.values if self._average else {})
            with self.loss.autocast():
                yield
        finally:
            drop_gathered(self._denoiser)
            self._put(held)
            self._denoiser.train()

    def result(self) -> Values:
        """Return copies of the values to save, averaged if there is an average; every process must call this."""
        return copied(self._average.values if self._average else self._learning)

    def state(self) -> dict[str, Any]:
        """Return the fields `values`, `optimizer` and `average` of a `TrainState`; every process must call this."""
        return {
            "values": copied(self._learning),
            "optimizer": optimizer_state(self._optimizer, self._learning),
            "average": copied(self._average.values) if self._average else None,
        }

    @torch.no_grad()
    def _put(self, values: Values) -> None:
        for name, value in values.items():
            self._learning[name].copy_(value)

    def _dropout_seed(self, forward_pass: int) -> int:
        text = f"dropout {self._config.seed} {forward_pass} {self._fabric.global_rank}"
        return xxhash.xxh64_intdigest(text.encode()) >> 1


def rate_factor(settings: OptimizerSettings, step: int, total: int) -> float:
    """Return the factor on the learning rate in a step, in [0, 1].

    A linear warm-up that starts at 1/warmup_steps; then constant, or decaying to 0 just after the last step, linearly
    or along half a cosine.

    Args:
        step: optimizer step, from 0.
        total: steps of the complete run, including earlier parts.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
    if settings.learning_rate_scheduler == "linear":
        return 1 - done
    return 0.5 * (1 + cos(pi * done)) if settings.learning_rate_scheduler == "cosine" else 1.0


class Average:
    """Exponential moving average of parameters, in fp32.

    The decay at step k is at most (1 + k) / (10 + k), so that the first weights do not dominate for long.

    Attributes:
        values: averages by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.values: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._decay = decay

    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Update the average with the parameters after a step, from 0."""
        now = [parameters[name].detach() for name in self.values]
        average = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))
        average(list(self.values.values()), now, step)
