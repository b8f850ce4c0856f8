"""Find the layers of a network that have a matrix, which of them share an input, and its vectors."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lbm_lora.naming import ModuleName, ParamName


@dataclass(frozen=True, kw_only=True)
class CalledLayer:
    """One linear or conv layer.

    Attributes:
        shape: shape of its weight: (out, in) or (out, in, kh, kw).
        inputs: the first layer called with the same tensor, such as to_q for the to_k and to_v of a self-attention;
            the layer itself if it is the first. Convs share inputs only if their kernels cover the same positions.
    """

    shape: tuple[int, ...]
    inputs: ModuleName

    @property
    def repeat(self) -> int:
        """Number of kernel positions."""
        return math.prod(self.shape[2:])

    @property
    def columns(self) -> int:
        """Columns of the matrix: input channels times kernel positions."""
        return math.prod(self.shape[1:])


def matrices(network: nn.Module) -> Iterator[tuple[ModuleName, nn.Linear | nn.Conv2d]]:
    """Yield the linear and conv layers by name, without grouped convs: their weight is not a matrix over all inputs."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            yield ModuleName(name), module


def vectors(network: nn.Module) -> Iterator[tuple[ParamName, nn.Parameter]]:
    """Yield the parameters of one dimension by name: biases and weights of norms. A shared one has its first name."""
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            yield ParamName(name), parameter


@torch.no_grad()
def find_layers(network: nn.Module, forward: Callable[[], object]) -> dict[ModuleName, CalledLayer]:
    """Return the layers that a forward pass of the network calls, in call order.

    Args:
        forward: runs the network once. The inputs of all layers are kept meanwhile, so use a small input.
    """
    layers: dict[ModuleName, CalledLayer] = {}
    first: dict[tuple[object, ...], tuple[ModuleName, Tensor]] = {}  # keeping the tensor alive keeps its id unique
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
    first: dict[tuple[object, ...], tuple[ModuleName, Tensor]],
    module: nn.Module,
    inputs: tuple[Tensor, ...],
) -> None:
    """Record, as a forward hook, the layer and the first layer with its input."""
    covered: tuple[object, ...] = ()
    if isinstance(module, nn.Conv2d):
        covered = (module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode)
    owner, _ = first.setdefault((id(inputs[0]), *covered), (name, inputs[0]))
    layers[name] = CalledLayer(shape=tuple(cast(Tensor, module.weight).shape), inputs=owner)
