"""Find the layers of a network that have a matrix, which of them share an input, and its vectors."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lbm_lora.errors import InputError
from lbm_lora.naming import ModuleName, ParamName


@dataclass(frozen=True, kw_only=True)
class CalledLayer:
    """One linear or conv layer.

    Attributes:
        shape: shape of its weight: (out, in) or (out, in, kh, kw).
        inputs: the first layer called with the same tensors, such as to_q for the to_k and to_v of a self-attention;
            the layer itself if it is the first. Convs share inputs only if their kernels cover the same positions.
        calls: number of calls in one forward pass; 1 in statistics that were read from a file.
    """

    shape: tuple[int, ...]
    inputs: ModuleName
    calls: int = 1

    @property
    def repeat(self) -> int:
        """Number of kernel positions."""
        return math.prod(self.shape[2:])

    @property
    def columns(self) -> int:
        """Columns of the matrix: input channels times kernel positions."""
        return math.prod(self.shape[1:])


def matrices(network: nn.Module) -> Iterator[tuple[ModuleName, nn.Linear | nn.Conv2d]]:
    """Yield the linear and conv layers by name, without those of `unmeasured`."""
    others = unmeasured(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in others:
            yield ModuleName(name), module


def vectors(network: nn.Module) -> Iterator[tuple[ParamName, nn.Parameter]]:
    """Yield the parameters of one dimension by name: biases and weights of norms. A shared one has its first name."""
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            yield ParamName(name), parameter


def unmeasured(network: nn.Module) -> dict[ModuleName, str]:
    """Return the modules whose weight has the shape of a matrix or conv, but is not used as one, with the reason.

    They are embeddings, grouped convs, layers that read a weight without calling its module (nn.MultiheadAttention),
    and weights that two modules share, whose change is one.
    """
    owners = dict(network.named_modules(remove_duplicate=False))
    weights = {
        name: weight
        for name, module in owners.items()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.dim() in (2, 4)
    }
    counts = Counter(map(id, weights.values()))
    found: dict[ModuleName, str] = {}
    for name, weight in weights.items():
        module, parent = owners[name], owners[name.rpartition(".")[0]]
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            found[ModuleName(name)] = "grouped Conv2d"
        elif not isinstance(module, nn.Linear | nn.Conv2d):
            found[ModuleName(name)] = type(module).__name__
        elif isinstance(parent, nn.MultiheadAttention):
            found[ModuleName(name)] = "part of MultiheadAttention"
        elif counts[id(weight)] > 1:
            found[ModuleName(name)] = "a shared weight"
    return found


@torch.no_grad()
def find_layers(
    network: nn.Module, forward: Callable[[], object], names: Collection[ModuleName] | None = None
) -> dict[ModuleName, CalledLayer]:
    """Return the layers that a forward pass of the network calls, in call order.

    Args:
        forward: runs the network once. The inputs of all layers are kept meanwhile, so use a small input.
        names: the layers to look for; by default all of `matrices`.
    """
    calls: dict[ModuleName, list[Tensor]] = {}  # keeping the tensors alive keeps their ids unique

    def note(name: ModuleName, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs:
            raise InputError(
                f"{name} is called with a keyword argument, which cannot be measured. Call it as layer(x)."
            )
        calls.setdefault(name, []).append(inputs[0])

    modules = {name: module for name, module in matrices(network) if names is None or name in names}
    handles = [module.register_forward_pre_hook(partial(note, name)) for name, module in modules.items()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    first: dict[tuple[object, ...], ModuleName] = {}
    layers: dict[ModuleName, CalledLayer] = {}
    for name, inputs in calls.items():
        module = modules[name]
        shape = tuple(module.weight.shape)
        covered = () if isinstance(module, nn.Linear) else _covered(module)
        owner = first.setdefault((len(shape), shape[1], *covered, *map(id, inputs)), name)
        layers[name] = CalledLayer(shape=shape, inputs=owner, calls=len(inputs))
    return layers


def _covered(conv: nn.Conv2d) -> tuple[object, ...]:
    """Return what decides which positions a conv's kernel covers."""
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode
