"""Inject a trainable LoRA into a live denoiser: PEFT's layers, and fp32 parameters for biases and norms.

The base's own parameters are frozen and keep their dtype; trainable parameters are always fp32. Their names do not
depend on PEFT: `<module>.lora_down`, `<module>.lora_up`, and the param name of a bias or norm.

Two initialisations, PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775), start from factors of the base's weight and
subtract them: W becomes W - scaling * up0 @ down0. These initial factors are kept, so that the trained delta can be
expressed relative to W again.
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
from lbm_lora.blocks import is_finite
from lbm_lora.errors import ConfigError
from lbm_lora.naming import ModuleName, ParamName, leaf_of, module_of
from lbm_lora.trainable.layout import PlannedLora, TrainPlan

DOWN, UP = ".lora_down", ".lora_up"
_TAKES_OUT = ("pissa", "olora")
_ADAPTER = "default"
_PATHS = {DOWN: f".lora_A.{_ADAPTER}.weight", UP: f".lora_B.{_ADAPTER}.weight"}

Value = TypeVar("Value")


@dataclass(frozen=True)
class InitialFactors:
    """Factors that an initialisation subtracted from a base weight: fp32, without the scaling."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveAdapter:
    """A denoiser with a trainable LoRA.

    Attributes:
        denoiser: the denoiser with PEFT's layers.
        plan: plan of the injected LoRA.
        given: the adapter that training continues; empty for a new LoRA.
        base: base values of the trainable dense parameters.
        initial: initial factors of the modules whose base weight the initialisation changed.
    """

    denoiser: nn.Module = field(repr=False)
    plan: TrainPlan
    given: Adapter
    base: Mapping[ParamName, Tensor] = field(repr=False)
    initial: Mapping[ModuleName, InitialFactors] = field(repr=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name, in an order that depends only on the plan."""
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
    """Inject the planned LoRA into a denoiser, in place.

    Args:
        given: the adapter whose modules and dense deltas are injected; None for a new LoRA.
        init: initialisation of a new LoRA's linear layers; convs always use PEFT's default.
        dropout: dropout on the inputs of the trainable lora modules, in training mode.
        seed: seed of a new LoRA's weights.
        initial: initial factors of an earlier injection with the same plan, to subtract exactly again.
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
            taken[lora.name] = _initial(lora.name, initial or {}, _factors_of(layer))
            weight = _without(weight, taken[lora.name], lora.alpha / lora.rank)
        layer.get_base_layer().weight.data = weight
    live = LiveAdapter(denoiser=denoiser, plan=plan, given=adapter, base=base, initial=taken)
    denoiser.train(denoiser.training)  # the new layers inherit the mode, for their dropout
    for parameter in denoiser.parameters():
        parameter.requires_grad_(False)  # overrides PEFT's choice
    for parameter in live.parameters.values():
        parameter.requires_grad_(True)
    return live


def _fuse_frozen(denoiser: nn.Module, plan: TrainPlan, adapter: Adapter) -> None:
    """Fuse frozen dense deltas into the parameters, exactly as `infer` does."""
    frozen = {name: delta for name, delta in adapter.dense.items() if name not in plan.dense}
    if frozen:
        fuse_module(denoiser, [ScaledAdapter(replace(adapter, modules={}, dense=frozen))])


def _make_trainable(denoiser: nn.Module, name: ParamName, delta: Tensor | None) -> Tensor:
    """Replace a parameter by a trainable base + delta in fp32, and return the base's values."""
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
    """Replace the planned modules by PEFT's layers.

    Within one call of PEFT, ranks and alphas may differ, but initialisation and dropout may not. Two calls are needed
    if linear layers and convs are initialised differently, or if only trainable modules use dropout.
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
            # PEFT divides alpha by the rank, and also accepts a float
            alpha_pattern=cast(dict[str, int], _patterns(names, [lora.alpha for lora in loras])),
            lora_dropout=share,
            init_lora_weights=cast(bool, True if kind == "default" else kind),
        )
        inject_adapter_in_model(config, denoiser, _ADAPTER)
        del denoiser.peft_config  # so that PEFT does not take the next call for a second adapter


def _patterns(names: Iterable[ModuleName], values: Iterable[Value]) -> dict[str, Value]:
    """Return PEFT's patterns for the values of modules: one per value, since PEFT tries them in sequence."""
    modules: dict[Value, list[ModuleName]] = defaultdict(list)
    for name, value in zip(names, values, strict=True):
        modules[value].append(name)
    # PEFT prepends (.*\.)?, which the ^ forces to be empty: a name may be the end of another
    return {f"^({'|'.join(map(re.escape, found))})": value for value, found in modules.items()}


def _in_fp32(denoiser: nn.Module, names: Iterable[ModuleName]) -> None:
    """Give modules fp32 copies of their weights, which an initialisation may read and change in place.

    A weight may be a read-only view of a file, and factors would otherwise get the precision of the weight.
    """
    for name in names:
        weight = denoiser.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight.data = weight.data.float().clone()


def _settle(layer: LoraLayer, given: LoraModule | None) -> None:
    """Set fp32 weights, from the file if there is one."""
    device = cast(Tensor, layer.get_base_layer().weight).device
    for factors, values in ((layer.lora_A, given and given.down), (layer.lora_B, given and given.up)):
        weight = cast(nn.Parameter, factors[_ADAPTER].weight)
        # a copy: the file's tensors are views of it
        weight.data = weight.data.float() if values is None else values.to(device, torch.float32, copy=True)


def _factors_of(layer: LoraLayer) -> InitialFactors:
    down, up = (cast(Tensor, factors[_ADAPTER].weight) for factors in (layer.lora_A, layer.lora_B))
    return InitialFactors(down.detach().cpu().clone(), up.detach().cpu().clone())


def _initial(name: ModuleName, kept: Mapping[ModuleName, InitialFactors], drawn: InitialFactors) -> InitialFactors:
    """Return the initial factors of an earlier injection, or the new ones."""
    if name not in kept:
        return drawn
    found = kept[name]
    for one, other in ((found.down, drawn.down), (found.up, drawn.up)):
        if one.shape != other.shape or not is_finite(one):
            raise ConfigError(
                f"the state of the run is damaged: the initial factors of {name} have shape {tuple(one.shape)} instead "
                f"of {tuple(other.shape)}, or are not finite. Remove it to start again."
            )
    return found


def _without(weight: Tensor, taken: InitialFactors, scaling: float) -> Tensor:
    """Return weight - scaling * up0 @ down0, computed in fp32, in the dtype of `weight`."""
    delta = scaling * (taken.up @ taken.down)
    return (weight.float() - delta.to(weight.device)).to(weight.dtype)


def _path_in(denoiser: nn.Module, name: ParamName) -> str:
    """Return the path of a base parameter after PEFT has wrapped its module."""
    module = denoiser.get_submodule(module_of(name))
    return f"{module_of(name)}.base_layer.{leaf_of(name)}" if isinstance(module, LoraLayer) else name
