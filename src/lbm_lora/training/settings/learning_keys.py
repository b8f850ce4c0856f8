"""Keys of a training file for the loss and the optimizer."""

import json
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from lbm_lora.training.settings.training_file import (
    LARGEST,
    Count,
    Positive,
    Section,
    Share,
    Text,
    check_shares,
    nearest,
)

if TYPE_CHECKING:
    from torch.optim import Optimizer

Timestep = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0)]

SAMPLINGS = {
    "selected_timesteps": "custom_timesteps",
    "prob": "custom_timesteps",
    "logit_mean": "log_normal",
    "logit_std": "log_normal",
}
"""Keys that belong to one distribution of the timesteps."""
_TENSORS = ConfigDict(arbitrary_types_allowed=True)
_REFUSED = {
    "LBFGS": "it evaluates the loss several times in a step",
    "SparseAdam": "it needs sparse gradients",
}


class ObjectiveSettings(Section):
    """The loss. None: the value in the base's own configuration."""

    latent_loss_type: Literal["l2", "l1"] | None = None
    """Loss on latents. Default: as the base's configuration says."""
    latent_loss_weight: Weight = 1.0
    """Weight of the loss on latents."""
    pixel_loss_type: Literal["l2", "l1", "lpips"] | None = None
    """Loss on decoded pixels. Default: as the base's configuration says."""
    pixel_loss_weight: Weight = 0.0
    """Weight of the loss on pixels. LBM trains with 10, which takes a decoder pass and the LPIPS weights."""
    pixel_loss_max_size: Annotated[int, Field(ge=64, le=16384)] = 512
    """Longest side of the random crop for the pixel loss, in pixels."""
    lpips_weights: Path | None = None
    """File with the weights of the LPIPS network. Default: download torchvision's."""
    lpips_net: Literal["vgg", "alex"] = "vgg"
    """Network of the LPIPS loss."""
    timestep_sampling: Literal["uniform", "log_normal", "custom_timesteps"] | None = None
    """Distribution of the timesteps; log_normal: the logistic function of a normal value. Default: from the base's
    configuration."""
    selected_timesteps: tuple[Timestep, ...] | None = None
    """Timesteps for custom_timesteps: above 0, up to 1000, the source. Default: from the base's configuration."""
    prob: tuple[Share, ...] | None = None
    """Probability of each selected timestep; together 1. Default: from the base's configuration."""
    logit_mean: float | None = None
    """Mean of the normal value of log_normal. Default: as the base's configuration says."""
    logit_std: Positive | None = None
    """Standard deviation of the normal value of log_normal, above 0. Default: as the base's configuration says."""
    bridge_noise_sigma: Weight | None = None
    """Strength of the bridge noise. Default: as the base's configuration says."""

    @model_validator(mode="after")
    def _check_objective(self) -> "ObjectiveSettings":
        if self.latent_loss_weight == 0 and self.pixel_loss_weight == 0:
            raise ValueError("latent_loss_weight and pixel_loss_weight are both 0. At least one must be above 0")
        if self.selected_timesteps == ():
            raise ValueError("selected_timesteps is empty. Give at least one, or remove the key")
        if self.selected_timesteps is not None and self.prob is not None:
            check_shares("prob", self.prob, "selected_timesteps", len(self.selected_timesteps))
        for key, sampling in SAMPLINGS.items():
            if getattr(self, key) is not None and self.timestep_sampling not in (None, sampling):
                raise ValueError(f"{key} needs timestep_sampling {sampling}, but it is {self.timestep_sampling}")
        return self


def optimizers() -> "dict[str, Callable[..., Optimizer]]":
    """Return the supported optimizer classes of torch, by name."""
    import torch
    from torch.optim import Optimizer

    found = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return {
        name: value
        for name, value in found.items()
        if issubclass(value, Optimizer) and value is not Optimizer and name not in _REFUSED
    }


class OptimizerSettings(Section):
    """Optimizer, schedule, batch size and length of training."""

    learning_rate: Positive = 1e-4
    """Learning rate, above 0, after the warm-up."""
    optimizer: Text = "AdamW"
    """A class of torch.optim."""
    optimizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the optimizer, such as {weight_decay: 0.01}."""
    lora_plus_ratio: Positive | None = None
    """Ratio of the up factors' learning rate to the down factors': above 0 (LoRA+, arXiv 2402.12354). Default: 1."""
    learning_rate_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule after the warm-up: constant, or decay to 0 at the last step (linear, cosine)."""
    warmup_steps: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Raise the learning rate from 0 over this many optimizer steps."""
    gradient_clip: Positive | None = 1.0
    """Scale gradients down to this norm, above 0, over all trainable parameters. null: no clipping."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, more time."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Save an exponential moving average of the weights with this decay, between 0 and 1. Default: the last weights."""
    batch_size: Annotated[Count, Field(le=4096)] = 8
    """Samples per forward pass and device."""
    accumulate: Count = 1
    """Forward passes per optimizer step (gradient accumulation)."""
    max_epochs: Count = 100
    """Stop after this many passes through the data."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, unless `max_epochs` stops earlier."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed for all random draws: order, augmentations, timesteps, noise, new weights."""

    @model_validator(mode="after")
    def _check_optimizer(self) -> "OptimizerSettings":
        known = optimizers()
        if self.optimizer in _REFUSED:
            raise ValueError(f"optimizer {self.optimizer} is not supported: {_REFUSED[self.optimizer]}")
        if self.optimizer not in known:
            hint = nearest(self.optimizer, known)
            raise ValueError(f"optimizer '{self.optimizer}' is not a class of torch.optim. {hint}")
        self._check_kwargs(known[self.optimizer])
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} and max_steps {self.max_steps}: the warm-up would never end"
            )
        return self

    def _check_kwargs(self, build: "Callable[..., Optimizer]") -> None:
        """Check the names and types of the arguments, and their values by building the optimizer on one parameter."""
        if "lr" in self.optimizer_kwargs:
            raise ValueError("optimizer_kwargs.lr is not allowed. Use learning_rate")
        known = {name: one for name, one in signature(build).parameters.items() if name not in ("params", "lr")}
        for key, value in self.optimizer_kwargs.items():
            if key not in known:
                raise ValueError(
                    f"optimizer_kwargs.{key} is not an argument of {self.optimizer}. {nearest(key, known)}"
                )
            _check_type(key, value, known[key].annotation)
        import torch

        try:
            build([torch.nn.Parameter(torch.zeros(1, 1))], lr=self.learning_rate, **self.optimizer_kwargs)
        except Exception as error:  # whatever torch refuses
            raise ValueError(f"{self.optimizer} rejects optimizer_kwargs {self.optimizer_kwargs}: {error}") from None


def _check_type(key: str, value: object, annotation: Any) -> None:
    """Compare a value with the annotation of torch, which itself may find a wrong one only in a step, or never."""
    kind = Any if annotation is Parameter.empty else annotation
    try:
        TypeAdapter(kind, config=_TENSORS).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise ValueError(f"optimizer_kwargs.{key} must be a {name}, got {value!r}") from None
