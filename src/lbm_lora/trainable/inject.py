"""A LoRA in a live denoiser, to be trained: PEFT's layers, and fp32 parameters for biases and norms.

The base's own parameters are frozen and keep their dtype; what learns is fp32 whatever the base is. Parameters are
known by names that do not depend on PEFT: `<module>.lora_down`, `<module>.lora_up`, and the param name of a bias or
norm.

Two initialisations, PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775), start from factors taken out of the base's
weight: W becomes W - scaling * up0 @ down0. These initial factors are kept, so that the trained delta can be given
relative to W again.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.naming import ModuleName, ParamName, leaf_of, module_of
from lbm_lora.trainable.layout import PlannedLora, TrainPlan

DOWN, UP = ".lora_down", ".lora_up"
_TAKES_OUT = ("pissa", "olora")
_ADAPTER = "default"
_PATHS = {DOWN: f".lora_A.{_ADAPTER}.weight", UP: f".lora_B.{_ADAPTER}.weight"}

Value = TypeVar("Value")


@dataclass(frozen=True)
class InitialFactors:
    """The factors that an initialisation took out of a base weight: fp32, without the scaling."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveAdapter:
    """A denoiser with a LoRA in it that learns.

    Attributes:
        denoiser: with PEFT's layers.
        plan: what it holds.
        given: the adapter that training continues; empty for a new LoRA.
        base: the base's values of the dense parameters that learn.
        initial: of the modules whose base weight the initialisation changed.
    """

    denoiser: nn.Module = field(repr=False)
    plan: TrainPlan
    given: Adapter
    base: Mapping[ParamName, Tensor] = field(repr=False)
    initial: Mapping[ModuleName, InitialFactors] = field(repr=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by name, in an order that depends on the plan alone."""
        loras = [lora.name for lora in self.plan.loras if lora.learns]
        paths = {name + end: name + _PATHS[end] for name in loras for end in (DOWN, UP)}
        paths |= {name: _path_in(self.denoiser, name) for name in self.plan.dense}
        return {name: self.denoiser.get_parameter(path) for name, path in paths.items()}


def inject_plan(
    denoiser: nn.Module,
    plan: TrainPlan,
    *,
    given: Adapter | None = None,
    init: str = "default",
    dropout: float = 0.0,
    seed: int = 0,
    initial: Mapping[ModuleName, InitialFactors] | None = None,
) -> LiveAdapter:
    """Put the planned LoRA into a denoiser, in place.

    Args:
        given: the adapter whose modules and dense deltas are put in; without one the LoRA is new.
        init: initialisation of a new LoRA's linear layers; convs always take PEFT's default.
        dropout: of the inputs of the lora modules that learn, in training mode.
        seed: of a new LoRA's weights.
        initial: those of an earlier injection with the same plan: they are taken out of the base again, exactly.
    """
    adapter = given or Adapter({}, {})
    _fuse_frozen(denoiser, plan, adapter)
    base = {name: _make_trainable(denoiser, name, adapter.dense.get(name)) for name in plan.dense}
    weights = {lora.name: _weight(denoiser, lora.name) for lora in plan.loras}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(denoiser, plan, init="default" if given or initial else init, dropout=dropout)
    taken: dict[ModuleName, InitialFactors] = {}
    for lora in plan.loras:
        layer = cast(LoraLayer, denoiser.get_submodule(lora.name))
        _settle(layer, adapter.modules.get(lora.name))
        weight = weights[lora.name]
        if init.startswith(_TAKES_OUT) and not lora.is_conv:
            taken[lora.name] = (initial or {}).get(lora.name) or _factors_of(layer)
            weight = _without(weight, taken[lora.name], lora.alpha / lora.rank)
        layer.get_base_layer().weight.data = weight
    live = LiveAdapter(denoiser=denoiser, plan=plan, given=adapter, base=base, initial=taken)
    denoiser.train(denoiser.training)  # the new layers take over the mode, for their dropout
    for parameter in denoiser.parameters():
        parameter.requires_grad_(False)  # PEFT has its own idea of it
    for parameter in live.parameters.values():
        parameter.requires_grad_(True)
    return live


def _fuse_frozen(denoiser: nn.Module, plan: TrainPlan, adapter: Adapter) -> None:
    """Dense deltas that do not learn go into the parameters as `infer` puts them there."""
    frozen = {name: delta for name, delta in adapter.dense.items() if name not in plan.dense}
    if frozen:
        fuse_module(denoiser, [ScaledAdapter(replace(adapter, modules={}, dense=frozen))])


def _make_trainable(denoiser: nn.Module, name: ParamName, delta: Tensor | None) -> Tensor:
    """Replace a parameter by base + delta in fp32, which learns; returns the base's values."""
    module = denoiser.get_submodule(module_of(name))
    base = denoiser.get_parameter(name).detach()
    value = base.float() + delta.float() if delta is not None else base.float().clone()
    setattr(module, leaf_of(name), nn.Parameter(value))
    return base


def _weight(denoiser: nn.Module, name: ModuleName) -> Tensor:
    weight = denoiser.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _inject(denoiser: nn.Module, plan: TrainPlan, *, init: str, dropout: float) -> None:
    """PEFT's layers in place of the planned modules.

    Ranks and alphas may differ within one call of PEFT, initialisation and dropout may not. So there are two calls
    where linear layers start otherwise than convs, or where frozen modules must not drop what learning ones do.
    """
    groups: dict[tuple[str, float], list[PlannedLora]] = defaultdict(list)
    for lora in plan.loras:
        groups["default" if lora.is_conv else init, dropout if lora.learns else 0.0].append(lora)
    for (kind, share), loras in groups.items():
        names = [lora.name for lora in loras]
        if kind not in ("default", "gaussian"):
            _in_fp32(denoiser, names)
        config = LoraConfig(
            target_modules="|".join(map(re.escape, names)),
            rank_pattern=_patterns(names, [lora.rank for lora in loras]),
            # PEFT divides an alpha by the rank, and takes a float as well
            alpha_pattern=cast(dict[str, int], _patterns(names, [lora.alpha for lora in loras])),
            lora_dropout=share,
            init_lora_weights=cast(bool, True if kind == "default" else kind),
        )
        inject_adapter_in_model(config, denoiser, _ADAPTER)
        del denoiser.peft_config  # so that the next call is not taken for a second adapter


def _patterns(names: Iterable[ModuleName], values: Iterable[Value]) -> dict[str, Value]:
    """PEFT's patterns for the values of modules: one for each value, since PEFT tries them one after the other."""
    modules: dict[Value, list[ModuleName]] = defaultdict(list)
    for name, value in zip(names, values, strict=True):
        modules[value].append(name)
    # PEFT puts (.*\.)? in front, which the ^ leaves empty: a name may be the end of another one
    return {f"^({'|'.join(map(re.escape, found))})": value for value, found in modules.items()}


def _in_fp32(denoiser: nn.Module, names: Iterable[ModuleName]) -> None:
    """Give modules fp32 copies of their weights, which an initialisation may read and change in place.

    A weight may be a view of a file that cannot be written to, and factors would get the precision of the weight.
    """
    for name in names:
        weight = denoiser.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight.data = weight.data.float().clone()


def _settle(layer: LoraLayer, given: LoraModule | None) -> None:
    """fp32 weights, those of the file where there is one."""
    device = cast(Tensor, layer.get_base_layer().weight).device
    for factors, values in ((layer.lora_A, given and given.down), (layer.lora_B, given and given.up)):
        weight = cast(nn.Parameter, factors[_ADAPTER].weight)
        # a copy: the file's tensors are views of it
        weight.data = weight.data.float() if values is None else values.to(device, torch.float32, copy=True)


def _factors_of(layer: LoraLayer) -> InitialFactors:
    down, up = (cast(Tensor, factors[_ADAPTER].weight) for factors in (layer.lora_A, layer.lora_B))
    return InitialFactors(down.detach().cpu().clone(), up.detach().cpu().clone())


def _without(weight: Tensor, taken: InitialFactors, scaling: float) -> Tensor:
    """weight - scaling * up0 @ down0 in fp32, in the dtype of `weight`."""
    delta = scaling * (taken.up @ taken.down)
    return (weight.float() - delta.to(weight.device)).to(weight.dtype)


def _path_in(denoiser: nn.Module, name: ParamName) -> str:
    """Where a parameter of the base stands once PEFT has wrapped its module."""
    module = denoiser.get_submodule(module_of(name))
    return f"{module_of(name)}.base_layer.{leaf_of(name)}" if isinstance(module, LoraLayer) else name
