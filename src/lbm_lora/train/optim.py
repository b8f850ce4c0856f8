"""The optimizer of a run: any class of torch by name, LoRA+, the schedule, and the average of the weights."""

from collections.abc import Mapping
from inspect import signature
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lbm_lora.train.inject import UP
from lbm_lora.train.settings.optimizer import OptimizerSettings, optimizers


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> Optimizer:
    """The optimizer over parameters by name (`<module>.lora_up`, ...).

    With `lora_plus_ratio` the up factors have that many times the learning rate (LoRA+, arXiv 2402.12354). Where the
    class can, it updates all parameters in one call: a LoRA has very many small ones.
    """
    kind = optimizers()[settings.optimizer]
    up = [parameter for name, parameter in parameters.items() if name.endswith(UP)]
    rest = [parameter for name, parameter in parameters.items() if not name.endswith(UP)]
    rate = settings.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": rest, "lr": rate},
        {"params": up, "lr": rate * (settings.lora_plus_ratio or 1.0)},
    ]
    kwargs = dict(settings.optimizer_kwargs)
    if "fused" in signature(kind).parameters and not kwargs.keys() & {"foreach", "fused", "differentiable"}:
        kwargs["fused"] = True
    return kind([group for group in groups if group["params"]], lr=rate, **kwargs)


def rate_factor(settings: OptimizerSettings, step: int, total: int) -> float:
    """What the learning rate is multiplied by in a step, in [0, 1].

    A linear warm-up, whose first step has 1/warmup_steps; then constant, or falling to 0 behind the last step, by a
    line or half a cosine.

    Args:
        step: from 0.
        total: steps of the whole run.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
    if settings.learning_rate_scheduler == "linear":
        return 1 - done
    return 0.5 * (1 + cos(pi * done)) if settings.learning_rate_scheduler == "cosine" else 1.0


class Average:
    """An exponential moving average of parameters, in fp32.

    The decay of step k is at most (1 + k) / (10 + k), so that the first weights do not weigh for long.

    Attributes:
        values: by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.values: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Take in the parameters after a step, which is counted from 0."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        now = [parameters[name].detach() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), now, weight)  # pyright: ignore[reportPrivateUsage]
