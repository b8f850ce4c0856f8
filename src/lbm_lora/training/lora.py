"""A trainable LoRA: its plan, from patterns and shapes; PEFT's layers in a live denoiser; its export as adapter.

rsLoRA (arXiv 2312.03732), which scales by alpha / sqrt(rank), is planned as alpha * sqrt(rank), as a file holds it.

The base's own parameters are frozen and keep their dtype; trainable parameters are always fp32. Their names do not
depend on PEFT: `<module>.lora_down`, `<module>.lora_up`, and the param name of a bias or norm.

Two initialisations, PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775), start from factors of the base's weight and
subtract them: W becomes W - scaling * up0 @ down0. These initial factors are kept, so that the trained delta can be
expressed relative to W again.
"""

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import TypeVar, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.errors import AdapterError, ConfigError, listing
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, bias_of, leaf_of, module_of, select, weight_of
from lbm_lora.training.settings import ModelSettings

DOWN, UP = ".lora_down", ".lora_up"
_TAKES_OUT = ("pissa", "olora")
_ADAPTER = "default"
_PATHS = {DOWN: f".lora_A.{_ADAPTER}.weight", UP: f".lora_B.{_ADAPTER}.weight"}

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class PlannedLora:
    """One lora module; a frozen one acts in the forward pass but does not change. Alpha is that of a file."""

    name: ModuleName
    rank: int
    alpha: float
    is_conv: bool
    learns: bool


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Plan of a trainable LoRA: lora modules in the network's order; biases and norms that train with their factors."""

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


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.padding_mode == "zeros" and set(conv.dilation) == {1}


def modules_in(layout: Layout, adapter: Adapter) -> list[ModuleName]:
    """Return the modules of an adapter in the network's order."""
    strange = [name for name in adapter.modules if name not in layout.layers]
    if strange:
        raise AdapterError(
            f"{adapter.label}: {len(strange)} of its modules are neither Linear nor plain Conv2d in the denoiser: "
            f"{listing(strange, limit=3)}."
        )
    return [name for name in layout.layers if name in adapter.modules]


def plan_new(layout: Layout, keys: ModelSettings) -> TrainPlan:
    """Plan a new LoRA on the modules that both `lora_target_modules` and `trainable_lora_modules` select.

    If several patterns of `rank_pattern` or `alpha_pattern` match a module, the last one applies. A rank above the
    bound of a matrix is lowered to it; the scaling stays as requested.
    """
    targets = _selected(layout.layers, keys.lora_target_modules)
    learning = _learning(layout, keys, targets)
    chosen = {name: layout.layers[name] for name in targets if name in learning}
    if not chosen:
        raise ConfigError("trainable_lora_modules selects none of the modules that lora_target_modules selects.")
    ranks, alphas = _by_pattern(chosen, keys.rank_pattern), _by_pattern(chosen, keys.alpha_pattern)
    loras = tuple(_new_lora(name, shape, ranks.get(name), alphas.get(name), keys) for name, shape in chosen.items())
    return TrainPlan(loras=loras, dense=_dense(layout, keys, learning, chosen))


def plan_continued(layout: Layout, keys: ModelSettings, adapter: Adapter) -> TrainPlan:
    """Plan the LoRA of a file, each module with its own rank and alpha."""
    modules = {name: adapter.modules[name] for name in modules_in(layout, adapter)}
    learning = _learning(layout, keys, modules)
    loras = tuple(
        PlannedLora(
            name=name, rank=one.rank, alpha=one.alpha, is_conv=len(layout.layers[name]) > 2, learns=name in learning
        )
        for name, one in modules.items()
    )
    dense = _dense(layout, keys, learning, modules)
    if not dense and not any(lora.learns for lora in loras):
        raise ConfigError(f"lora_weights_path {adapter.label} has no trainable modules.")
    return TrainPlan(loras=loras, dense=dense)


def _learning(layout: Layout, keys: ModelSettings, names: Iterable[ModuleName]) -> set[ModuleName]:
    return set(_selected([*names, *(layout.norms if keys.train_norms else ())], keys.trainable_lora_modules))


def _new_lora(
    name: ModuleName, shape: tuple[int, ...], rank: int | None, alpha: float | None, keys: ModelSettings
) -> PlannedLora:
    is_conv = len(shape) > 2
    asked = rank or (keys.lora_conv_rank if is_conv else None) or keys.lora_rank
    assert asked is not None
    alpha = alpha or (keys.lora_conv_alpha if is_conv else keys.lora_alpha) or float(asked)
    kept = min(asked, rank_bound(shape))
    if keys.init_lora == "orthogonal" and not is_conv and kept % 2:
        raise ConfigError(f"init_lora orthogonal needs even ranks, but {name} of shape {shape} can only have {kept}.")
    alpha = alpha * sqrt(kept) if keys.use_rslora else alpha * kept / asked
    return PlannedLora(name=name, rank=kept, alpha=alpha, is_conv=is_conv, learns=True)


def _selected(names: Iterable[ModuleName], patterns: Sequence[str] | None) -> list[ModuleName]:
    """Return the names that a pattern matches, in order; all of them if there are no patterns."""
    names = list(names)
    chosen = names if patterns is None else select(names, patterns, prefix=DENOISER_PREFIX)
    return [name for name in names if name in chosen]


def _by_pattern(names: Iterable[ModuleName], patterns: Mapping[str, Value]) -> dict[ModuleName, Value]:
    """Return the value of the last matching pattern for each name that has one."""
    found: dict[ModuleName, Value] = {}
    for pattern, value in patterns.items():
        found |= dict.fromkeys(_selected(names, [pattern]), value)
    return found


def _dense(
    layout: Layout, keys: ModelSettings, learning: Container[ModuleName], lora_modules: Iterable[ModuleName]
) -> tuple[ParamName, ...]:
    """Return the biases of trainable lora modules, and the trainable norms."""
    names: list[ParamName] = []
    if keys.train_biases:
        names += [bias_of(name) for name in lora_modules if name in learning and name in layout.biased]
        if not names:
            raise ConfigError("train_biases is on, but no trainable module has a bias. Remove it.")
    if keys.train_norms:
        norms = [name for name in layout.norms if name in learning]
        if not norms:
            raise ConfigError(
                "train_norms is on, but trainable_lora_modules selects no normalisation layer. Add a pattern for "
                f"them; the first ones are {listing(layout.norms, limit=3)}."
            )
        names += [weight_of(name) for name in norms] + [bias_of(name) for name in norms if name in layout.biased]
    return tuple(names)


@dataclass(frozen=True)
class InitialFactors:
    """Factors that an initialisation subtracted from a base weight: fp32, without the scaling."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveAdapter:
    """A denoiser with a trainable LoRA.

    Attributes:
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
        init: initialisation of a new LoRA's linear layers, drawn from `seed`; convs always use PEFT's default.
        dropout: dropout on the inputs of the trainable lora modules, in training mode.
        initial: initial factors of an earlier injection with the same plan, to subtract exactly again.
    """
    adapter = given or Adapter({}, {})
    frozen = {name: delta for name, delta in adapter.dense.items() if name not in plan.dense}
    if frozen:
        fuse_module(denoiser, [ScaledAdapter(replace(adapter, modules={}, dense=frozen))])
    base = {name: _make_trainable(denoiser, name, adapter.dense.get(name)) for name in plan.dense}
    weights = {lora.name: denoiser.get_parameter(weight_of(lora.name)).detach() for lora in plan.loras}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(denoiser, plan, init="default" if given or initial else init, dropout=dropout)
    taken: dict[ModuleName, InitialFactors] = {}
    for lora in plan.loras:
        layer, weight = cast(LoraLayer, denoiser.get_submodule(lora.name)), weights[lora.name]
        _settle(layer, adapter.modules.get(lora.name))
        if init.startswith(_TAKES_OUT) and not lora.is_conv:
            down, up = (factor.detach().cpu().clone() for factor in _factors(layer))
            factors = (initial or {}).get(lora.name) or InitialFactors(down, up)
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
                weight = denoiser.get_parameter(weight_of(name))
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
    for weight, values in zip(_factors(layer), (given and given.down, given and given.up), strict=True):
        # a copy: the file's tensors are views of it
        weight.data = weight.data.float() if values is None else values.to(device, torch.float32, copy=True)


def _factors(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    return cast(nn.Parameter, layer.lora_A[_ADAPTER].weight), cast(nn.Parameter, layer.lora_B[_ADAPTER].weight)


def export_adapter(live: LiveAdapter, values: Mapping[str, Tensor], metadata: AdapterMetadata) -> Adapter:
    """Return everything that acts in the forward pass as an adapter, in fp32, with `values` for `live.parameters`.

    Frozen modules and dense deltas keep the exact values of their file.
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
    return value.detach().to("cpu", torch.float32, copy=True)
