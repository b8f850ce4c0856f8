"""Weights of a network that are in memory only while their module runs.

A large network in fp32 takes twice the memory of its bf16 file. Here each module gets its weights just before it runs,
from a function, and gives them up afterwards: the file stays mapped, and one module's weights are in memory.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lbm_lora.adapter import LoraModule
from lbm_lora.apply import add_factors
from lbm_lora.naming import ParamName

LARGE = 200_000_000
"""Parameters of a network above which streaming is worth its time."""

Make = Callable[[], Tensor]
"""Returns the values of a parameter: new ones, or a view that is not written to."""


class StreamedWeights:
    """Weights of a network on the CPU, each made in fp32 whenever its module runs.

    Args:
        network: its parameters are emptied. They may have any dtype, and be views of a file.
    """

    def __init__(self, network: nn.Module) -> None:
        self.shapes: dict[ParamName, tuple[int, ...]] = {}
        self._network = network
        self._make: dict[ParamName, Make] = {}
        self._added: dict[ParamName, RemovableHandle] = {}
        for path, module in network.named_modules():
            leaves = [leaf for leaf, _ in module.named_parameters(recurse=False)]
            own = {ParamName(f"{path}.{leaf}" if path else leaf): leaf for leaf in leaves}
            for name, leaf in own.items():
                parameter = module.get_parameter(leaf)
                self.shapes[name] = tuple(parameter.shape)
                self.put(name, parameter.data.float)
                parameter.data = torch.empty(0)
            if own:
                module.register_forward_pre_hook(partial(self._fill, own))
                module.register_forward_hook(_empty)

    def put(self, name: ParamName, make: Make, low_rank: LoraModule | None = None) -> None:
        """Let a parameter have other values from now on, in its shape.

        Args:
            low_rank: a delta to add. Its factors are applied to the module's inputs: to form their product, and to add
                it, takes longer than to run the module.
        """
        self._make[name] = make
        if name in self._added:
            self._added.pop(name).remove()
        if low_rank is not None:
            self._added[name] = add_factors(self._network.get_submodule(low_rank.name), low_rank)

    def _fill(self, own: dict[ParamName, str], module: nn.Module, _: object) -> None:
        for name, leaf in own.items():
            module.get_parameter(leaf).data = self._make[name]()


def _empty(module: nn.Module, *_: object) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data = torch.empty(0)
