"""The optimizer of a run: any torch class by name, with LoRA+. A trial step shows what torch refuses."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lbm_lora.errors import ConfigError, listing
from lbm_lora.trainable.inject import UP
from lbm_lora.training.settings.learning_keys import OptimizerSettings, optimizers


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> Optimizer:
    """Return the optimizer for parameters by name (`<module>.lora_up`, ...).

    With `lora_plus_ratio` the up factors have that many times the learning rate (LoRA+, arXiv 2402.12354). If the class
    supports it, it updates all parameters in one call: a LoRA has very many small ones.

    Raises:
        ConfigError: the optimizer cannot train such parameters.
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
    try:
        return kind([group for group in groups if group["params"]], lr=rate, **kwargs)
    except Exception as error:  # whatever torch refuses
        raise ConfigError(
            f"optimizer {settings.optimizer} cannot train the chosen parameters: {_said(error)}. Choose another one, "
            "or train other modules."
        ) from None


def check_optimizer(settings: OptimizerSettings, device: torch.device) -> None:
    """Take a step on a small matrix: torch refuses some arguments, and some devices, only then.

    Raises:
        ConfigError: torch refuses it, or the step leads to values that are not finite.
    """
    weight = _weight(device)
    chosen = f"optimizer {settings.optimizer} with optimizer_kwargs {settings.optimizer_kwargs}"
    try:
        make_optimizer({"weight": weight}, settings).step()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{chosen} cannot take a step on {device}: {_said(error)}.") from None
    if not weight.isfinite().all():
        raise ConfigError(f"{chosen} makes weights infinite or NaN in its first step. Choose smaller values.")


def check_kept(
    kept: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings
) -> None:
    """Check that an optimizer that goes on has kept what it needs: other arguments may need more.

    Args:
        kept: what it has kept for each parameter, by name.
        parameters: those that it trains.

    Raises:
        ConfigError: something is missing, or has another shape than a step gives it.
    """
    needed: dict[int, Mapping[str, Any]] = {}
    for name, parameter in parameters.items():
        if name not in kept:
            continue
        size = parameter.dim()
        if size not in needed:
            needed[size] = _kept_by(settings, parameter.device, size)
        missing = needed[size].keys() - kept[name].keys()
        if missing:
            raise ConfigError(
                f"optimizer_kwargs {settings.optimizer_kwargs} need {listing(sorted(missing))}, which "
                f"{settings.optimizer} has not kept so far in this run. Use the ones that the run began with, or "
                "choose another save_ckpt_path."
            )
        for key, value in needed[size].items():
            if _shape(kept[name][key]) != _at_size(_shape(value), parameter.shape):
                raise ConfigError(
                    f"what {settings.optimizer} has kept for {name} so far is damaged: {key} has another shape. Choose "
                    "another save_ckpt_path; lora_weights_path continues from a saved LoRA."
                )


_SIDES = (2, 3, 4, 5)  # all different, so that a side of 1 is one that an optimizer reduces


def _kept_by(settings: OptimizerSettings, device: torch.device, size: int) -> Mapping[str, Any]:
    """Return what an optimizer keeps after a step on a small tensor of so many dimensions."""
    weight = _weight(device, _SIDES[:size])
    optimizer = make_optimizer({"weight": weight}, settings)
    optimizer.step()
    return optimizer.state[weight]


def _shape(value: object) -> tuple[int, ...]:
    """Return the shape of a tensor; () for a number."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _at_size(small: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a value of a small tensor has for a parameter."""
    return tuple(1 if side == 1 else full for side, full in zip(small, shape, strict=False))


def _weight(device: torch.device, shape: tuple[int, ...] = (2, 2)) -> nn.Parameter:
    """A small tensor with a gradient."""
    weight = nn.Parameter(torch.full(shape, 0.5, device=device))
    weight.grad = torch.full_like(weight, 0.5)
    return weight


def _said(error: Exception) -> str:
    """Return the message of a torch error on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
