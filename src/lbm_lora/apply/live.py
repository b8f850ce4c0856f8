"""Apply adapters to a live model in two ways, each with its exact inverse.

`inject` leaves the matrices unchanged and adds up(down(x)) to the output of their modules by forward hooks: no module
is wrapped or renamed, and `eject` removes the hooks. `fuse_module` gives each changed parameter a new tensor that
includes the deltas, and `unfuse` restores the original tensor; it never subtracts, so any number of cycles is exact.
The originals are not copied: weights that are views of a file stay views and take no memory.

Dense deltas have no module to hook: both ways fuse them.

What was put in may be taken out in any order. The parameters are then, bit for bit, what they would be if the rest
alone had been put in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from lbm_lora.adapter import LoraModule
from lbm_lora.apply.checks import check_fit
from lbm_lora.apply.fuse import ScaledAdapter, fused
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ParamName, weight_of


@dataclass(eq=False)
class Fused:
    """The tensors that a model had before adapters were fused into it. Keep this to remove the adapters again.

    Attributes:
        saved: the tensors, by name; empty once the adapters are removed.
        above: what was fused into the model since, and is still in it.
    """

    model: nn.Module
    adapters: Sequence[ScaledAdapter]
    saved: dict[ParamName, Tensor]
    above: list["Fused"] = field(default_factory=list["Fused"], repr=False)

    @torch.no_grad()
    def unfuse(self) -> None:
        """Restore the saved values, bit for bit, with what was fused since on top."""
        for name, value in reversed(self.saved.items()):  # a tied parameter was saved once for each of its names
            parameter = _tensor(self.model, name)
            parameter.data = value.to(parameter.device)  # the model may have been moved since
        touched = {id(_tensor(self.model, name)) for name in self.saved}
        for later in self.above:
            later.put_back(touched)
        self.saved, self.adapters, self.above = {}, (), []
        for other in _fused_into(self.model):
            if self in other.above:
                other.above.remove(self)

    def put_back(self, touched: set[int]) -> None:
        """Fuse the adapters again into those parameters whose tensors have changed under them, given by their id."""
        for name in self.saved:
            parameter = _tensor(self.model, name)
            if id(parameter) in touched:
                self.saved[name], parameter.data = parameter.data, fused(parameter, name, self.adapters)


_FUSED: WeakKeyDictionary[nn.Module, WeakSet[Fused]] = WeakKeyDictionary()
"""What is fused into each model, as long as somebody keeps it: only that can be removed again."""


def _fused_into(model: nn.Module) -> WeakSet[Fused]:
    return _FUSED.setdefault(model, WeakSet())


@dataclass(frozen=True)
class Injection:
    """Hooks and saved values of injected adapters."""

    fused: Fused
    hooks: list[RemovableHandle]

    def eject(self) -> None:
        """Remove every hook and restore the saved values, bit for bit."""
        for hook in self.hooks:
            hook.remove()
        self.fused.unfuse()


@torch.no_grad()
def fuse_module(model: nn.Module, adapters: Sequence[ScaledAdapter]) -> Fused:
    """Add every delta of the adapters to the model's parameters, in fp32 and cast once."""
    _check(model, adapters)
    return _fuse(model, adapters, {name for scaled in adapters for name in scaled.adapter.params})


@torch.no_grad()
def inject(model: nn.Module, adapters: Sequence[ScaledAdapter]) -> Injection:
    """Hook the low-rank part of the adapters into the forward pass; fuse their dense deltas into the parameters."""
    _check(model, adapters)
    hooks: list[RemovableHandle] = []
    try:
        for scaled in adapters:
            for module in scaled.adapter.modules.values():
                if lora_scale := scaled.scales[weight_of(module.name)]:
                    hooks.append(add_factors(model.get_submodule(module.name), module, lora_scale))
        dense = [ScaledAdapter(replace(scaled.adapter, modules={}), scaled.scales) for scaled in adapters]
        return Injection(_fuse(model, dense, {name for scaled in dense for name in scaled.adapter.dense}), hooks)
    except BaseException:
        for hook in hooks:
            hook.remove()
        raise


def _check(model: nn.Module, adapters: Sequence[ScaledAdapter]) -> None:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    shapes = {ParamName(name): tuple(tensor.shape) for name, tensor in tensors}
    for scaled in adapters:
        if scaled.adapter.params:
            check_fit(scaled.adapter, shapes)
        _ = scaled.scales  # a pattern without a match is refused before anything changes


def _tensor(model: nn.Module, name: ParamName) -> Tensor:
    """Return a parameter, or a buffer such as a running mean."""
    try:
        return model.get_parameter(name)
    except AttributeError:
        return model.get_buffer(name)


def _fuse(model: nn.Module, adapters: Sequence[ScaledAdapter], names: set[ParamName]) -> Fused:
    saved: dict[ParamName, Tensor] = {}
    for name in sorted(names):
        parameter = _tensor(model, name)
        value = fused(parameter, name, adapters)
        if value is not parameter:
            saved[name], parameter.data = parameter.data, value
    made = Fused(model, adapters, saved)
    for other in _fused_into(model):
        other.above.append(made)
    _fused_into(model).add(made)
    return made


@dataclass
class _Factors:
    """Down and up of a hook. They follow its inputs: a model may be moved, or offloaded between two calls."""

    down: Tensor
    up: Tensor

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.down.device != device:
            self.down, self.up = self.down.to(device), self.up.to(device)
        return self.down, self.up


def add_factors(target: nn.Module, module: LoraModule, lora_scale: float = 1.0) -> RemovableHandle:
    """Add lora_scale * scaling * up(down(x)) to the output of `target`, until the hook is removed."""
    weight = target.weight
    if not isinstance(weight, Tensor):
        raise AdapterError(f"{module.name} has no weight to adapt.")
    factors = _Factors(module.down.to(weight), (lora_scale * module.scaling * module.up.float()).to(weight))
    if isinstance(target, nn.Linear):

        def linear(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            down, up = factors.on(inputs[0].device)
            return output + functional.linear(functional.linear(inputs[0], down), up)

        return target.register_forward_hook(linear)
    if isinstance(target, nn.Conv2d) and target.groups == 1 and target.padding_mode == "zeros":
        stride, padding, dilation = target.stride, target.padding, target.dilation

        def conv(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            down, up = factors.on(inputs[0].device)
            return output + functional.conv2d(functional.conv2d(inputs[0], down, None, stride, padding, dilation), up)

        return target.register_forward_hook(conv)
    raise AdapterError(
        f"{module.name} is a {type(target).__name__}: only Linear and Conv2d (one group, zero padding) support a live "
        "LoRA. Fuse it instead."
    )
