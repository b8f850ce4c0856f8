"""Describe what can be trained in a network, and plan what will be.

Only names and shapes are used. Alphas are those of an adapter file: scaling = alpha / rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lbm_lora.adapter import Adapter
from lbm_lora.errors import AdapterError, listing
from lbm_lora.naming import ModuleName, ParamName


@dataclass(frozen=True, kw_only=True)
class PlannedLora:
    """One lora module; a frozen one acts in the forward pass but does not change."""

    name: ModuleName
    rank: int
    alpha: float
    is_conv: bool
    learns: bool


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Plan of a trainable LoRA.

    Attributes:
        loras: lora modules, in the network's order.
        dense: biases, and weights and biases of norms, that train along with the factors.
    """

    loras: tuple[PlannedLora, ...]
    dense: tuple[ParamName, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Modules of a network, by what can be trained in them.

    Attributes:
        layers: shapes of weights that can take a LoRA: Linear, and Conv2d of one group, zero padding and dilation 1.
        norms: modules whose weight has one dimension.
        biased: modules with a bias.
    """

    layers: Mapping[ModuleName, tuple[int, ...]]
    norms: tuple[ModuleName, ...]
    biased: frozenset[ModuleName]


def layout_of(network: nn.Module) -> Layout:
    """Return the layout of a network without a LoRA."""
    layers: dict[ModuleName, tuple[int, ...]] = {}
    norms: list[ModuleName] = []
    biased: set[ModuleName] = set()
    for name, module in network.named_modules():
        weights = dict(module.named_parameters(recurse=False))
        if "weight" in weights and weights["weight"].dim() == 1:
            norms.append(ModuleName(name))
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _is_plain(module)):
            layers[ModuleName(name)] = tuple(module.weight.shape)
        if "bias" in weights:
            biased.add(ModuleName(name))
    return Layout(layers=layers, norms=tuple(norms), biased=frozenset(biased))


def modules_in(layout: Layout, adapter: Adapter) -> list[ModuleName]:
    """Return the modules of an adapter in the network's order.

    Raises:
        AdapterError: the network lacks a module, or the module cannot take a LoRA.
    """
    strange = [name for name in adapter.modules if name not in layout.layers]
    if strange:
        raise AdapterError(
            f"{adapter.label}: {len(strange)} of its modules are neither Linear nor plain Conv2d in the denoiser: "
            f"{listing(strange, limit=3)}."
        )
    return [name for name in layout.layers if name in adapter.modules]


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.padding_mode == "zeros" and set(conv.dilation) == {1}
