"""Checkpoint + adapters -> checkpoint: W + sum of lora_scale * delta, in fp32, cast once at the end.

Streamed: one tensor at a time; what no adapter changes is copied byte for byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter
from lbm_lora.checkpoint import Checkpoint
from lbm_lora.naming import ParamName
from lbm_lora.parallel import ordered_map


@dataclass(frozen=True)
class ScaledAdapter:
    """An adapter with the factor that the user gives it; dense deltas are scaled like the factors."""

    adapter: Adapter
    lora_scale: float = 1.0


@torch.no_grad()
def fused(weight: Tensor, name: ParamName, adapters: Sequence[ScaledAdapter]) -> Tensor:
    """One parameter with its deltas added; the tensor itself where no adapter changes it.

    A `lora_scale` of 0 changes nothing, bit for bit.
    """
    total: Tensor | None = None
    for scaled in adapters:
        delta = scaled.adapter.delta(name) if scaled.lora_scale else None
        if delta is not None:
            term = scaled.lora_scale * delta.to(weight.device)
            total = term if total is None else total + term
    return weight if total is None else (weight.float() + total).to(weight.dtype)


def fused_tensors(
    checkpoint: Checkpoint, prefix: str, adapters: Sequence[ScaledAdapter]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint in the order of its data, those under `prefix` with the adapters in them."""

    def fuse_one(key: str) -> tuple[str, Tensor]:
        tensor = checkpoint.read(key)
        if not key.startswith(prefix):
            return key, tensor
        return key, fused(tensor, ParamName(key.removeprefix(prefix)), adapters)

    return ordered_map(fuse_one, checkpoint.specs)
