"""What learns: which modules hold a LoRA, at what rank and alpha, and which biases and norms learn beside it.

Names and shapes alone are looked at, so that a wrong pattern is found before anything is trained. Alphas are those
of an adapter file: scaling = alpha / rank. rsLoRA (arXiv 2312.03732), which scales by alpha / sqrt(rank), is stored
as alpha * sqrt(rank).
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
from lbm_lora.train.settings.model import ModelSettings

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class PlannedLora:
    """One lora module; a frozen one acts in the forward pass and stays as it is."""

    name: ModuleName
    rank: int
    alpha: float
    is_conv: bool
    learns: bool


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Attributes:
    loras: in the network's order.
    dense: biases, and weights and biases of norms, that learn whole.
    """

    loras: tuple[PlannedLora, ...]
    dense: tuple[ParamName, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The modules of a network by what can be trained of them.

    Attributes:
        layers: shapes of the weights that take a LoRA: Linear, and Conv2d of one group, zero padding and dilation 1.
        norms: modules whose weight has one dimension.
        biased: modules with a bias.
    """

    layers: Mapping[ModuleName, tuple[int, ...]]
    norms: tuple[ModuleName, ...]
    biased: frozenset[ModuleName]


def layout_of(network: nn.Module) -> Layout:
    """The layout of a network that holds no LoRA yet."""
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


def plan_new(layout: Layout, settings: ModelSettings) -> TrainPlan:
    """A new LoRA on the modules that `lora_target_modules` and `trainable_lora_modules` both select.

    Of several patterns of `rank_pattern` or `alpha_pattern` that match a module the last one counts. A rank above
    what a matrix can have is lowered to it; the scaling stays the one that was asked for.

    Raises:
        PatternError: a pattern matches nothing.
        ConfigError: nothing would learn, or the initialisation does not take a rank.
    """
    targets = _selected(layout.layers, settings.lora_target_modules)
    learning = _selected([*targets, *_norms(layout, settings)], settings.trainable_lora_modules)
    chosen = {name: layout.layers[name] for name in targets if name in learning}
    if not chosen:
        raise ConfigError("trainable_lora_modules selects none of the modules that lora_target_modules selects.")
    ranks = _by_pattern(chosen, settings.rank_pattern)
    alphas = _by_pattern(chosen, settings.alpha_pattern)
    loras = tuple(_new_lora(name, shape, ranks.get(name), alphas.get(name), settings) for name, shape in chosen.items())
    return TrainPlan(loras=loras, dense=_dense(layout, settings, learning, chosen))


def plan_continued(layout: Layout, settings: ModelSettings, adapter: Adapter) -> TrainPlan:
    """The LoRA of a file, each module with its own rank and alpha.

    Raises:
        PatternError: a pattern of `trainable_lora_modules` matches nothing of the file.
        AdapterError: the file has a module that the network does not have, or one that takes no LoRA.
        ConfigError: nothing would learn.
    """
    strange = [name for name in adapter.modules if name not in layout.layers]
    if strange:
        raise AdapterError(
            f"{adapter.path}: {len(strange)} of its modules are no Linear and no plain Conv2d of the denoiser: "
            f"{listing(strange, limit=3)}."
        )
    names = [name for name in layout.layers if name in adapter.modules]
    learning = _selected([*names, *_norms(layout, settings)], settings.trainable_lora_modules)
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
    dense = _dense(layout, settings, learning, names)
    if not dense and not any(lora.learns for lora in loras):
        raise ConfigError(f"lora_weights_path {adapter.path}: it has no module that learns.")
    return TrainPlan(loras=loras, dense=dense)


def _new_lora(
    name: ModuleName, shape: tuple[int, ...], rank: int | None, alpha: float | None, settings: ModelSettings
) -> PlannedLora:
    is_conv = len(shape) > 2
    default_rank = settings.lora_conv_rank or settings.lora_rank if is_conv else settings.lora_rank
    default_alpha = settings.lora_conv_alpha if is_conv else settings.lora_alpha
    asked = rank or default_rank
    assert asked is not None, "the settings are checked to have a rank"
    alpha = alpha or default_alpha or float(asked)
    kept = min(asked, rank_bound(shape))
    if settings.init_lora == "orthogonal" and not is_conv and kept % 2:
        raise ConfigError(f"init_lora orthogonal needs even ranks, and {name} of shape {shape} can only have {kept}.")
    alpha = alpha * sqrt(kept) if settings.use_rslora else alpha * kept / asked
    return PlannedLora(name=name, rank=kept, alpha=alpha, is_conv=is_conv, learns=True)


def _selected(names: Iterable[ModuleName], patterns: Sequence[str] | None) -> list[ModuleName]:
    """Names that a pattern matches, in their order; all of them without patterns."""
    names = list(names)
    if patterns is None:
        return names
    chosen = select(names, patterns, prefix=DENOISER_PREFIX)
    return [name for name in names if name in chosen]


def _by_pattern(names: Iterable[ModuleName], patterns: Mapping[str, Value]) -> dict[ModuleName, Value]:
    """The value of the last pattern that matches, for the names that one matches."""
    names = list(names)
    found: dict[ModuleName, Value] = {}
    for pattern, value in patterns.items():
        found |= dict.fromkeys(_selected(names, [pattern]), value)
    return found


def _norms(layout: Layout, settings: ModelSettings) -> tuple[ModuleName, ...]:
    return layout.norms if settings.train_norms else ()


def _dense(
    layout: Layout, settings: ModelSettings, learning: Iterable[ModuleName], lora_modules: Iterable[ModuleName]
) -> tuple[ParamName, ...]:
    """Biases of the lora modules that learn, and norms that learn."""
    learns = set(learning)
    names: list[ParamName] = []
    if settings.train_biases:
        names += [bias_of(name) for name in lora_modules if name in learns and name in layout.biased]
        if not names:
            raise ConfigError("train_biases is on, and no module that learns has a bias. Remove it.")
    if settings.train_norms:
        norms = [name for name in layout.norms if name in learns]
        if not norms:
            raise ConfigError(
                "train_norms is on, and trainable_lora_modules selects no normalisation layer. Add a pattern for "
                f"them; the first ones are {listing(layout.norms, limit=3)}."
            )
        names += [weight_of(name) for name in norms] + [bias_of(name) for name in norms if name in layout.biased]
    return tuple(names)


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.padding_mode == "zeros" and set(conv.dilation) == {1}
