"""The layers of a network that have a matrix, and which of them get one and the same input."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lbm_lora.naming import ModuleName


@dataclass(frozen=True, kw_only=True)
class CalledLayer:
    """One linear or conv layer.

    Attributes:
        shape: of its weight: (out, in) or (out, in, kh, kw).
        inputs: the first layer that is called with the same tensor: to_q for the to_k and to_v of a self-attention;
            the layer itself where none came before.
    """

    shape: tuple[int, ...]
    inputs: ModuleName

    @property
    def repeat(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.shape[2:])


def matrices(network: nn.Module) -> Iterator[tuple[ModuleName, nn.Linear | nn.Conv2d]]:
    """The linear and conv layers by name; grouped convs are left out, since theirs is no matrix over all inputs."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            yield ModuleName(name), module


@torch.no_grad()
def find_layers(network: nn.Module, forward: Callable[[], object]) -> dict[ModuleName, CalledLayer]:
    """The layers that a forward pass of the network calls, in the order of their calls.

    Args:
        forward: runs the network once. The inputs of all layers are held meanwhile: make it a small one.
    """
    layers: dict[ModuleName, CalledLayer] = {}
    first: dict[int, tuple[ModuleName, Tensor]] = {}  # the tensor is held, so that its id stays its own
    handles = [
        module.register_forward_pre_hook(partial(_note, name, layers, first)) for name, module in matrices(network)
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _note(
    name: ModuleName,
    layers: dict[ModuleName, CalledLayer],
    first: dict[int, tuple[ModuleName, Tensor]],
    module: nn.Module,
    inputs: tuple[Tensor, ...],
) -> None:
    """A hook: enter the layer, and its input where it is the first to get it."""
    owner, _ = first.setdefault(id(inputs[0]), (name, inputs[0]))
    layers[name] = CalledLayer(shape=tuple(cast(Tensor, module.weight).shape), inputs=owner)
