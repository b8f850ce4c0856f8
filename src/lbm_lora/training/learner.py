"""Train on a device: forward and backward passes, steps of any torch optimizer by name, and an average of the weights.

The schedule is our own code, the average is torch's.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from inspect import signature
from math import cos, inf, pi
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lbm_lora.errors import ConfigError, listing
from lbm_lora.training.checkpoint import Values, copied, optimizer_state, restore
from lbm_lora.training.data.dataset import Batch
from lbm_lora.training.launch import drop_gathered, is_sharded
from lbm_lora.training.lora import UP
from lbm_lora.training.loss import BatchLoss
from lbm_lora.training.settings import OptimizerSettings, optimizers

if TYPE_CHECKING:
    from lbm_lora.training.prepare import PreparedRun


class Learner:
    """Trainable part of a run's model, which is put on the device of Fabric, with its optimizer.

    Attributes:
        loss: the run's loss with the model on its device, for computations outside training.
        gradient_norm: gradient norm of the last step, before clipping.
    """

    def __init__(self, run: "PreparedRun", fabric: Fabric) -> None:
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
        """Run one forward and backward pass of a step, `index` of them; return the mean loss, without gradients."""
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


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> Optimizer:
    """Return the optimizer for parameters by name (`<module>.lora_up`, ...).

    With `lora_plus_ratio` the up factors have that many times the learning rate (LoRA+, arXiv 2402.12354). If the class
    supports it, it updates all parameters in one call: a LoRA has very many small ones.
    """
    kind, rate = optimizers()[settings.optimizer], settings.learning_rate
    up = [parameter for name, parameter in parameters.items() if name.endswith(UP)]
    rest = [parameter for name, parameter in parameters.items() if not name.endswith(UP)]
    groups = [{"params": rest, "lr": rate}, {"params": up, "lr": rate * (settings.lora_plus_ratio or 1.0)}]
    kwargs = dict(settings.optimizer_kwargs)
    if "fused" in signature(kind).parameters and not kwargs.keys() & {"foreach", "fused", "differentiable"}:
        kwargs["fused"] = True
    try:
        return kind([group for group in groups if group["params"]], lr=rate, **kwargs)
    except Exception as error:  # whatever torch refuses
        raise ConfigError(
            f"optimizer {settings.optimizer} cannot train the chosen parameters: {_said(error)}. Choose another one, "
            "or train other modules."
        ) from None


def check_optimizer(settings: OptimizerSettings, device: torch.device) -> None:
    """Take a step on a small matrix: torch refuses some arguments, and some devices, only then."""
    chosen = f"optimizer {settings.optimizer} with optimizer_kwargs {settings.optimizer_kwargs}"
    try:
        weight, _ = _trial(settings, device, dim=2)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{chosen} cannot take a step on {device}: {_said(error)}.") from None
    if not weight.isfinite().all():
        raise ConfigError(f"{chosen} makes weights infinite or NaN in its first step. Choose smaller values.")


def check_kept(
    kept: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings
) -> None:
    """Check that a saved optimizer state has all that the current arguments need."""
    needed = cache(lambda dim: _trial(settings, torch.device("cpu"), dim)[1].keys())
    for name in kept.keys() & parameters.keys():
        missing = needed(parameters[name].dim()) - kept[name].keys()
        if missing:
            raise ConfigError(
                f"optimizer_kwargs {settings.optimizer_kwargs} need {listing(sorted(missing))}, which "
                f"{settings.optimizer} has not kept so far in this run. Use the ones that the run began with, or "
                "choose another save_ckpt_path."
            )


def _trial(settings: OptimizerSettings, device: torch.device, dim: int) -> tuple[Tensor, Mapping[str, Any]]:
    """Take a step on a small tensor, and return it with what the optimizer keeps for it."""
    weight = nn.Parameter(torch.full((2,) * dim, 0.5, device=device))
    weight.grad = torch.full_like(weight, 0.5)
    optimizer = make_optimizer({"weight": weight}, settings)
    optimizer.step()
    return weight, optimizer.state[weight]


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def rate_factor(settings: OptimizerSettings, step: int, total: int) -> float:
    """Return the factor on the learning rate in a step, from 0, of all steps of a run: a number in [0, 1].

    A linear warm-up that starts at 1/warmup_steps; then constant, or decaying to 0 just after the last step, linearly
    or along half a cosine.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
    if settings.learning_rate_scheduler == "linear":
        return 1 - done
    return 0.5 * (1 + cos(pi * done)) if settings.learning_rate_scheduler == "cosine" else 1.0
