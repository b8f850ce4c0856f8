"""Keys of a training file about the optimisation: optimizer, schedule, batch and length."""

from collections.abc import Callable
from inspect import signature
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch.optim import Optimizer

from lbm_lora.train.settings.section import Count, Positive, Section, Text, nearest

_REFUSED = {
    "LBFGS": "it evaluates the loss several times in a step",
    "SparseAdam": "it needs sparse gradients",
}


def optimizers() -> dict[str, Callable[..., Optimizer]]:
    """The optimizer classes of torch that can train here, by name."""
    found = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return {
        name: value
        for name, value in found.items()
        if issubclass(value, Optimizer) and value is not Optimizer and name not in _REFUSED
    }


class OptimizerSettings(Section):
    """Optimizer, schedule, batch and length."""

    learning_rate: Positive = 1e-4
    optimizer: Text = "AdamW"
    """A class of `torch.optim`."""
    optimizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Its other arguments, as in {weight_decay: 0.01}."""
    lora_plus_ratio: Positive | None = None
    """Learning rate of the up factors over that of the down factors (LoRA+, arXiv 2402.12354). None: 1."""
    learning_rate_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up; linear and cosine end at 0 with the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0."""
    gradient_clip: Positive | None = 1.0
    """Largest norm of the gradient of all trainable parameters. None: no clipping."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass: less memory, more time."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average that is saved in place of the last weights. None: no average."""
    batch_size: Count = 8
    """Samples of one forward pass on one device."""
    accumulate: Count = 1
    """Forward passes for one optimizer step."""
    max_epochs: Count = 100
    max_steps: Count | None = None
    """Optimizer steps after which training ends, where `max_epochs` does not end it before."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything that is drawn: order, augmentations, timesteps, noise, new weights."""

    @model_validator(mode="after")
    def _check_optimizer(self) -> "OptimizerSettings":
        _check_name(self.optimizer)
        self._check_kwargs()
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} and max_steps {self.max_steps}: the learning rate would never "
                "be reached"
            )
        return self

    def _check_kwargs(self) -> None:
        """Their names, and their values by building the optimizer on one parameter."""
        if "lr" in self.optimizer_kwargs:
            raise ValueError("optimizer_kwargs.lr cannot be given: it is learning_rate")
        build = optimizers()[self.optimizer]
        known = [name for name in signature(build).parameters if name not in ("params", "lr")]
        for key in self.optimizer_kwargs:
            if key not in known:
                raise ValueError(f"optimizer_kwargs.{key} is no argument of {self.optimizer}. {nearest(key, known)}")
        try:
            build([torch.nn.Parameter(torch.zeros(1, 1))], lr=self.learning_rate, **self.optimizer_kwargs)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.optimizer} refuses optimizer_kwargs {self.optimizer_kwargs}: {error}") from None


def _check_name(name: str) -> None:
    if name in _REFUSED:
        raise ValueError(f"optimizer {name} cannot train here: {_REFUSED[name]}")
    known = optimizers()
    if name not in known:
        raise ValueError(f"optimizer '{name}' is no class of torch.optim. {nearest(name, known)}")
