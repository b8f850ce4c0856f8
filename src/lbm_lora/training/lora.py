"""A trainable LoRA in a live denoiser: PEFT's layers, and fp32 parameters for biases and norms; its export as adapter.

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

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.blocks import is_finite
from lbm_lora.errors import ConfigError
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, leaf_of, module_of
from lbm_lora.training.plan import PlannedLora, TrainPlan

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
        for name in self.plan.dense:
            module, leaf = module_of(name), leaf_of(name)
            is_wrapped = isinstance(self.denoiser.get_submodule(module), LoraLayer)  # by PEFT
            paths[name] = f"{module}.base_layer.{leaf}" if is_wrapped else name
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
    frozen = {name: delta for name, delta in adapter.dense.items() if name not in plan.dense}
    if frozen:
        fuse_module(denoiser, [ScaledAdapter(replace(adapter, modules={}, dense=frozen))])
    base = {name: _make_trainable(denoiser, name, adapter.dense.get(name)) for name in plan.dense}
    weights = {lora.name: _weight(denoiser, lora.name).detach() for lora in plan.loras}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(denoiser, plan, init="default" if given or initial else init, dropout=dropout)
    taken: dict[ModuleName, InitialFactors] = {}
    for lora in plan.loras:
        layer, weight = cast(LoraLayer, denoiser.get_submodule(lora.name)), weights[lora.name]
        _settle(layer, adapter.modules.get(lora.name))
        if init.startswith(_TAKES_OUT) and not lora.is_conv:
            factors = _initial(lora.name, initial or {}, layer)
            delta = lora.alpha / lora.rank * (factors.up @ factors.down)
            weight = (weight.float() - delta.to(weight.device)).to(weight.dtype)
            taken[lora.name] = factors
        layer.get_base_layer().weight.data = weight
    live = LiveAdapter(denoiser=denoiser, plan=plan, given=adapter, base=base, initial=taken)
    denoiser.train(denoiser.training)  # the new layers inherit the mode, for their dropout
    denoiser.requires_grad_(False)  # overrides PEFT's choice
    for parameter in live.parameters.values():
        parameter.requires_grad_(True)
    return live


def _make_trainable(denoiser: nn.Module, name: ParamName, delta: Tensor | None) -> Tensor:
    """Replace a parameter by a trainable base + delta in fp32, and return the base's values."""
    base = denoiser.get_parameter(name).detach()
    value = base.float() + delta.float() if delta is not None else base.float().clone()
    setattr(denoiser.get_submodule(module_of(name)), leaf_of(name), nn.Parameter(value))
    return base


def _weight(denoiser: nn.Module, name: ModuleName) -> nn.Parameter:
    return denoiser.get_parameter(f"{name}.weight")


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
            # an fp32 copy: PEFT changes weights in place, which may be read-only views of a file, and gives the
            # factors their precision
            for name in names:
                weight = _weight(denoiser, name)
                weight.data = weight.data.float().clone()
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


def _settle(layer: LoraLayer, given: LoraModule | None) -> None:
    """Set fp32 weights, from the file if there is one."""
    device = cast(Tensor, layer.get_base_layer().weight).device
    for factors, values in ((layer.lora_A, given and given.down), (layer.lora_B, given and given.up)):
        weight = cast(nn.Parameter, factors[_ADAPTER].weight)
        # a copy: the file's tensors are views of it
        weight.data = weight.data.float() if values is None else values.to(device, torch.float32, copy=True)


def _initial(name: ModuleName, kept: Mapping[ModuleName, InitialFactors], layer: LoraLayer) -> InitialFactors:
    """Return the initial factors of an earlier injection, or those of the new layer."""
    down, up = (cast(Tensor, factors[_ADAPTER].weight) for factors in (layer.lora_A, layer.lora_B))
    if name not in kept:
        return InitialFactors(down.detach().cpu().clone(), up.detach().cpu().clone())
    for one, other in ((kept[name].down, down), (kept[name].up, up)):
        if one.shape != other.shape or not is_finite(one):
            raise ConfigError(
                f"the state of the run is damaged: the initial factors of {name} have shape {tuple(one.shape)} instead "
                f"of {tuple(other.shape)}, or are not finite. Remove it to start again."
            )
    return kept[name]


def export_adapter(live: LiveAdapter, values: Mapping[str, Tensor], metadata: AdapterMetadata) -> Adapter:
    """Return everything that acts in the forward pass as an adapter, in fp32.

    Frozen modules and dense deltas keep the exact values of their file.

    Args:
        values: values of `live.parameters` by name, current or averaged.
    """
    modules = {lora.name: _exported(lora, live, values) for lora in live.plan.loras}
    dense = {name: delta.float() for name, delta in live.given.dense.items()}
    dense |= {name: _on_cpu(values[name]) - live.base[name].cpu().float() for name in live.plan.dense}
    return Adapter(modules, dense, metadata, DENOISER_PREFIX)


def _exported(lora: PlannedLora, live: LiveAdapter, values: Mapping[str, Tensor]) -> LoraModule:
    """Return one module of the file.

    Relative to a weight from which initial factors were subtracted, the delta is
    scaling * (up @ down - up0 @ down0), which has at most twice the rank. If that reaches the bound of the matrix, the
    delta itself becomes one factor and the identity the other.
    """
    if not lora.learns:
        given = live.given.modules[lora.name]
        return LoraModule(lora.name, given.down.float(), given.up.float(), given.alpha)
    down, up = _on_cpu(values[lora.name + DOWN]), _on_cpu(values[lora.name + UP])
    module, initial = LoraModule(lora.name, down, up, lora.alpha), live.initial.get(lora.name)
    if initial is None:
        return module
    rank = 2 * module.rank
    if rank < rank_bound(module.shape):
        factors = torch.cat([down, initial.down]), torch.cat([up, -initial.up], dim=1)
        return LoraModule(lora.name, *factors, module.scaling * rank)
    delta = module.scaling * (up @ down - initial.up @ initial.down)
    rows, columns = delta.shape
    size = min(rows, columns)
    up, down = (torch.eye(size), delta) if rows <= columns else (delta, torch.eye(size))
    return LoraModule(lora.name, down, up, float(size))


def _on_cpu(value: Tensor) -> Tensor:
    """Copy to fp32 on the CPU, independent of the parameter, which keeps training."""
    return value.detach().to("cpu", torch.float32, copy=True)
