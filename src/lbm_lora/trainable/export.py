"""Export a trained LoRA as an adapter, relative to its base."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.trainable.inject import DOWN, UP, InitialFactors, LiveAdapter
from lbm_lora.trainable.layout import PlannedLora


def export_adapter(live: LiveAdapter, values: Mapping[str, Tensor], metadata: AdapterMetadata) -> Adapter:
    """Return everything that acts in the forward pass as an adapter, in fp32.

    Frozen modules and dense deltas keep the exact values of their file.

    Args:
        values: values of `live.parameters` by name, current or averaged.
    """
    modules = {lora.name: _module(lora, live, values) for lora in live.plan.loras}
    dense = {name: delta.float() for name, delta in live.given.dense.items()}
    dense |= {name: _on_cpu(values[name]) - live.base[name].cpu().float() for name in live.plan.dense}
    return Adapter(modules, dense, metadata, DENOISER_PREFIX)


def _module(lora: PlannedLora, live: LiveAdapter, values: Mapping[str, Tensor]) -> LoraModule:
    """Return one module of the file."""
    if not lora.learns:
        given = live.given.modules[lora.name]
        return LoraModule(lora.name, given.down.float(), given.up.float(), given.alpha)
    module = LoraModule(lora.name, _on_cpu(values[lora.name + DOWN]), _on_cpu(values[lora.name + UP]), lora.alpha)
    initial = live.initial.get(lora.name)
    return module if initial is None else _from_base(module, initial)


def _from_base(module: LoraModule, initial: InitialFactors) -> LoraModule:
    """Return the module relative to the weight from which its initial factors were subtracted.

    scaling * (up @ down - up0 @ down0) has at most twice the rank. If that reaches the bound of the matrix, the delta
    itself becomes one factor and the identity the other.
    """
    rank = 2 * module.rank
    if rank >= rank_bound(module.shape):
        return _as_identity(module, module.scaling * (module.up @ module.down - initial.up @ initial.down))
    down = torch.cat([module.down, initial.down])
    up = torch.cat([module.up, -initial.up], dim=1)
    return LoraModule(module.name, down, up, module.scaling * rank)


def _as_identity(module: LoraModule, delta: Tensor) -> LoraModule:
    rows, columns = delta.shape
    size = min(rows, columns)
    up, down = (torch.eye(size), delta) if rows <= columns else (delta, torch.eye(size))
    return LoraModule(module.name, down, up, float(size))


def _on_cpu(value: Tensor) -> Tensor:
    """Copy to fp32 on the CPU, independent of the parameter, which keeps training."""
    return value.detach().to("cpu", torch.float32, copy=True)
