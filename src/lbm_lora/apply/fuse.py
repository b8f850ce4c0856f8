"""Fuse adapters into a checkpoint: W + sum of lora_scale * delta, in fp32, cast once at the end.

Tensors are streamed one at a time; those that no adapter changes are copied byte for byte.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraScale
from lbm_lora.blocks import Workspace, is_finite, tiles
from lbm_lora.checkpoint import Checkpoint, dtype_name
from lbm_lora.errors import AdapterError, CheckpointError, Option, PatternError, listing
from lbm_lora.factorize import Factors
from lbm_lora.naming import ParamName
from lbm_lora.parallel import ordered_map


@dataclass(frozen=True)
class ScaledAdapter:
    """An adapter with the user's `lora_scale`, which also scales its dense deltas.

    Attributes:
        lora_scale: one number; numbers by layer, as a `LoraScale` or its text (`0.8,down_blocks=0.5,attn1=0`); or a
            number for each param name of the adapter.
    """

    adapter: Adapter
    lora_scale: float | str | LoraScale | Mapping[ParamName, float] = 1.0

    @cached_property
    def scales(self) -> Mapping[ParamName, float]:
        """The scale of each parameter that the adapter changes."""
        if isinstance(self.lora_scale, Mapping):
            return self.lora_scale
        try:
            return LoraScale.parse(self.lora_scale).by_param(self.adapter.params)
        except PatternError as error:
            raise PatternError(f"{self.adapter.label}: ", *error.args) from None


@torch.no_grad()
def fused(weight: Tensor, name: ParamName, adapters: Sequence[ScaledAdapter]) -> Tensor:
    """Return one parameter with its deltas added; the tensor itself if no adapter changes it.

    A `lora_scale` of 0 changes nothing, bit for bit.
    """
    terms = [
        (lora_scale, term)
        for scaled in adapters
        if (lora_scale := scaled.scales.get(name)) and (term := _term(scaled.adapter, name, weight.device)) is not None
    ]
    if not terms:
        return weight
    if weight.ndim > 1 and not weight.is_floating_point():
        raise AdapterError(f"{name}: the base holds {dtype_name(weight.dtype)}, to which no delta can be added.")
    matrix = weight.reshape(weight.shape[0], -1) if weight.ndim > 1 else weight.reshape(1, -1)
    result = torch.empty(matrix.shape, dtype=weight.dtype, device=weight.device)
    workspace = Workspace(weight.device)
    for rows, columns in tiles(*matrix.shape):
        part = matrix[rows, columns]
        block = workspace.take(tuple(part.shape)).copy_(part)
        for lora_scale, term in terms:
            if isinstance(term, Factors):
                block.addmm_(term.up[rows], term.down[:, columns], alpha=lora_scale)
            else:
                block.add_(term.reshape(matrix.shape)[rows, columns], alpha=lora_scale)
        result[rows, columns] = block
        if not is_finite(result[rows, columns]):
            raise _not_finite(weight, name, adapters)
    return result.reshape(weight.shape)


def _not_finite(weight: Tensor, name: ParamName, adapters: Sequence[ScaledAdapter]) -> AdapterError:
    """Return the error that says where values that are not finite come from."""
    if not is_finite(weight):
        return AdapterError(f"{name}: the base holds NaN or infinite values. Repair it, or download it again.")
    used = listing(f"{scaled.adapter.label} at {scaled.scales[name]:g}" for scaled in adapters if name in scaled.scales)
    return AdapterError(
        f"{name}: base + delta leaves the range of {dtype_name(weight.dtype)}: {used}. Choose a smaller ",
        Option("lora_scale"),
        ", or a base of a wider dtype.",
    )


def _term(adapter: Adapter, name: ParamName, device: torch.device) -> Factors | Tensor | None:
    """Return an adapter's delta of a parameter, as factors or dense, in fp32."""
    module = adapter.module_at(name)
    if module is None:
        dense = adapter.dense.get(name)
        return None if dense is None else dense.to(device).float()
    factors = module.factors()
    dense = factors.dense()
    if dense is not None:
        return dense.to(device)
    return Factors(factors.up.to(device), factors.down.to(device))


def fused_tensors(
    checkpoint: Checkpoint, prefix: str, adapters: Sequence[ScaledAdapter]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a checkpoint in the order of its data, with adapters fused into those under `prefix`."""

    def fuse_one(key: str) -> tuple[str, Tensor]:
        tensor = checkpoint.read(key)
        if not is_finite(tensor):
            raise CheckpointError(f"{checkpoint.path}: {key} holds NaN or infinite values. Repair the file first.")
        if not key.startswith(prefix):
            return key, tensor
        return key, fused(tensor, ParamName(key.removeprefix(prefix)), adapters)

    return ordered_map(fuse_one, checkpoint.specs)
