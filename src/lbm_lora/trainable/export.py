"""A trained LoRA as an adapter, relative to the base that it was put into."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.trainable.inject import DOWN, UP, InitialFactors, LiveAdapter
from lbm_lora.trainable.layout import PlannedLora


def export_adapter(live: LiveAdapter, values: Mapping[str, Tensor], metadata: AdapterMetadata) -> Adapter:
    """Everything that acts in the forward pass, in fp32.

    Modules and dense deltas that do not learn have the very values of the file that they come from.

    Args:
        values: of `live.parameters`, by name: those of now, or an average.
    """
    modules = {lora.name: _module(lora, live, values) for lora in live.plan.loras}
    dense = {name: delta.float() for name, delta in live.given.dense.items()}
    dense |= {name: _on_cpu(values[name]) - live.base[name].cpu().float() for name in live.plan.dense}
    return Adapter(modules, dense, metadata, DENOISER_PREFIX)


def _module(lora: PlannedLora, live: LiveAdapter, values: Mapping[str, Tensor]) -> LoraModule:
    """One module of the file."""
    if not lora.learns:
        given = live.given.modules[lora.name]
        return LoraModule(lora.name, given.down.float(), given.up.float(), given.alpha)
    module = LoraModule(lora.name, _on_cpu(values[lora.name + DOWN]), _on_cpu(values[lora.name + UP]), lora.alpha)
    initial = live.initial.get(lora.name)
    return module if initial is None else _from_base(module, initial)


def _from_base(module: LoraModule, initial: InitialFactors) -> LoraModule:
    """The same module relative to the weight that its initial factors were taken out of.

    scaling * (up @ down - up0 @ down0) has at most twice the rank. Where that is no less than what the matrix can
    have, the delta itself is one factor and the identity the other.
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
    """fp32 on the CPU, apart from the parameter that goes on learning."""
    return value.detach().to("cpu", torch.float32, copy=True)
