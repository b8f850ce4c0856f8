"""What trains: patterns become a plan of modules with their ranks and alphas.

Only names and shapes are used, so a wrong pattern is found before training starts. Alphas are those of an adapter
file: scaling = alpha / rank. rsLoRA (arXiv 2312.03732), which scales by alpha / sqrt(rank), is stored as
alpha * sqrt(rank).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

from torch import nn

from lbm_lora.adapter import Adapter
from lbm_lora.errors import AdapterError, ConfigError, listing
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, bias_of, select, weight_of
from lbm_lora.training.settings.model_keys import ModelSettings

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class PlannedLora:
    """One lora module; a frozen one acts in the forward pass but does not change."""

    name: ModuleName
    rank: int
    alpha: float
    is_conv: bool
    learns: bool


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Plan of a trainable LoRA.

    Attributes:
        loras: lora modules, in the network's order.
        dense: biases, and weights and biases of norms, that train along with the factors.
    """

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
    """Return the modules of an adapter in the network's order.

    Raises:
        AdapterError: the network lacks a module, or the module cannot take a LoRA.
    """
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

    Raises:
        PatternError: a pattern matches nothing.
        ConfigError: nothing would train, or the initialisation does not support a rank.
    """
    targets = _selected(layout.layers, keys.lora_target_modules)
    norms = layout.norms if keys.train_norms else ()
    learning = _selected([*targets, *norms], keys.trainable_lora_modules)
    chosen = {name: layout.layers[name] for name in targets if name in learning}
    if not chosen:
        raise ConfigError("trainable_lora_modules selects none of the modules that lora_target_modules selects.")
    ranks, alphas = _by_pattern(chosen, keys.rank_pattern), _by_pattern(chosen, keys.alpha_pattern)
    loras = tuple(_new_lora(name, shape, ranks.get(name), alphas.get(name), keys) for name, shape in chosen.items())
    return TrainPlan(loras=loras, dense=_dense(layout, keys, learning, chosen))


def plan_continued(layout: Layout, keys: ModelSettings, adapter: Adapter) -> TrainPlan:
    """Plan the LoRA of a file, each module with its own rank and alpha.

    Raises:
        PatternError: a pattern of `trainable_lora_modules` matches nothing in the file.
        AdapterError: the file has a module that the network lacks, or that cannot take a LoRA.
        ConfigError: nothing would train.
    """
    names = modules_in(layout, adapter)
    norms = layout.norms if keys.train_norms else ()
    learning = _selected([*names, *norms], keys.trainable_lora_modules)
    loras = tuple(
        PlannedLora(
            name=name,
            rank=adapter.modules[name].rank,
            alpha=adapter.modules[name].alpha,
            is_conv=len(layout.layers[name]) > 2,
            learns=name in learning,
        )
        for name in names
    )
    dense = _dense(layout, keys, learning, names)
    if not dense and not any(lora.learns for lora in loras):
        raise ConfigError(f"lora_weights_path {adapter.label} has no trainable modules.")
    return TrainPlan(loras=loras, dense=dense)


def _new_lora(
    name: ModuleName, shape: tuple[int, ...], rank: int | None, alpha: float | None, keys: ModelSettings
) -> PlannedLora:
    is_conv = len(shape) > 2
    asked = rank or (keys.lora_conv_rank if is_conv else None) or keys.lora_rank
    assert asked is not None, "the settings check ensures a rank"
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
    layout: Layout, keys: ModelSettings, learning: Iterable[ModuleName], lora_modules: Iterable[ModuleName]
) -> tuple[ParamName, ...]:
    """Return the biases of trainable lora modules, and the trainable norms."""
    learns = set(learning)
    names: list[ParamName] = []
    if keys.train_biases:
        names += [bias_of(name) for name in lora_modules if name in learns and name in layout.biased]
        if not names:
            raise ConfigError("train_biases is on, but no trainable module has a bias. Remove it.")
    if keys.train_norms:
        norms = [name for name in layout.norms if name in learns]
        if not norms:
            raise ConfigError(
                "train_norms is on, but trainable_lora_modules selects no normalisation layer. Add a pattern for "
                f"them; the first ones are {listing(layout.norms, limit=3)}."
            )
        names += [weight_of(name) for name in norms] + [bias_of(name) for name in norms if name in layout.biased]
    return tuple(names)
