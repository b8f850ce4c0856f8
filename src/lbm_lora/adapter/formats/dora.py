"""Weight-decomposed LoRA (DoRA): the dense delta that its factors and magnitudes make of a base weight.

    tuned = magnitude * (base + delta) / norm(base + delta)

The norm is taken over every axis on which the magnitude has size 1. PEFT has one magnitude per output; LyCORIS also
knows one per input. The delta depends on the base and is not linear in the LoRA's scale: no LoRA holds it as factors.
Source: Liu et al., DoRA (arXiv 2402.09353), equation 5.
"""

from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.checkpoint import Component
from lbm_lora.errors import AdapterError, Option, plural
from lbm_lora.naming import ModuleName, weight_of


def dora_delta(base: Tensor, delta: Tensor, magnitude: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """Return the dense delta in fp32, in the weight's shape.

    Args:
        base, delta: the base's weight, and scaling * up @ down, in one shape.
        magnitude: as many axes as the weight, each of its size or 1: (out, 1[, 1, 1]) or (1, in[, 1, 1]).
        epsilon: added to the norm.
    """
    weight = base.float()
    direction = weight + delta.float()
    axes = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
    norm = torch.linalg.vector_norm(direction, dim=axes, keepdim=True) + epsilon
    scale = torch.where(norm > 0, magnitude.float() / norm, 0.0)  # a direction of zeros has no length to change
    return scale * direction - weight


def dora_note(modules: int, nbytes: int) -> str:
    """Return what the user should know of DoRA modules.

    Args:
        nbytes: of their dense deltas.
    """
    size = f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB"
    return f"{plural(modules, 'module')} of DoRA: dense deltas ({size} in all), exact for this base and at scale 1."


def base_weight(base: Component | None, name: ModuleName, shape: tuple[int, ...], where: Path) -> Tensor:
    """Return the base's weight of a DoRA module."""
    if base is None:
        raise AdapterError(
            f"{where}: {name} has DoRA magnitudes: its delta depends on the base. `lbm-lora "
            "convert` reads it with the base: ",
            Option("base_model_path", "BASE"),
            ".",
        )
    spec = base.specs.get(weight_of(name))
    if spec is None or spec.shape != shape:
        found = f"{base.path} has no {weight_of(name)}" if spec is None else f"{base.path} has {spec}"
        raise AdapterError(f"{where}: {name} changes a weight of shape {shape}, but {found}.")
    return base.read(weight_of(name))
