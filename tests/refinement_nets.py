"""A tiny network with a tuned version, an adapter and inputs, for tests of the joint refit."""

from collections.abc import Sequence

import torch
from torch import nn

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.refinement.adjustable import Sample

FIRST, LAST = ModuleName("0"), ModuleName("3")


def network() -> nn.Sequential:
    """Return a convolution, a norm, and a linear layer over its channels, with seeded weights."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 1))
    return made.requires_grad_(requires_grad=False).eval()


def adapter(seed: int, size: float = 0.1) -> Adapter:
    """Return a LoRA of rank 2 on both convolutions, with all biases and the norm."""
    draw = torch.Generator().manual_seed(seed)
    modules: dict[ModuleName, LoraModule] = {}
    dense: dict[ParamName, torch.Tensor] = {}
    for name, parameter in network().named_parameters():
        module = ModuleName(name.partition(".")[0])
        if parameter.ndim == 1:
            dense[ParamName(name)] = size * torch.randn(parameter.shape, generator=draw)
        else:
            down = size * torch.randn(2, *parameter.shape[1:], generator=draw)
            up = torch.randn(parameter.shape[0], 2, 1, 1, generator=draw)
            modules[module] = LoraModule(module, down, up, 2.0)
    return Adapter(modules, dense)


def tuned(given: Adapter) -> nn.Sequential:
    """Return the network with an adapter in its weights."""
    made = network()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            delta = given.delta(ParamName(name))
            if delta is not None:
                parameter += delta
    return made


def batch(running: nn.Module, target: nn.Module, seeds: Sequence[int]) -> Sample:
    """Return what `target` gives for one input per seed, on which `running` is run."""
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    inputs = torch.cat([torch.randn(1, 3, 5, 5, generator=draw) for draw in draws])
    weights = torch.linspace(0.5, 1.5, len(inputs))
    return Sample(run=lambda: running(inputs), wanted=target(inputs), weights=weights)
