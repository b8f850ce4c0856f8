"""The optimizer of a run: any torch class by name, with LoRA+, its schedule, and trial steps that torch may refuse."""

from collections.abc import Mapping
from functools import cache
from inspect import signature
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lbm_lora.errors import ConfigError, listing
from lbm_lora.training.lora import UP
from lbm_lora.training.settings import OptimizerSettings, optimizers


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
    """Check what an optimizer that goes on has kept for each parameter, by name: other arguments may need more."""
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
