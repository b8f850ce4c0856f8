"""Turn patterns into a plan: which modules train, and at what rank and alpha.

Only names and shapes are used, so a wrong pattern is found before training starts. rsLoRA (arXiv 2312.03732), which
scales by alpha / sqrt(rank), is stored as alpha * sqrt(rank).
"""

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import Protocol, TypeVar, runtime_checkable

from lbm_lora.adapter import Adapter
from lbm_lora.errors import ConfigError, listing
from lbm_lora.factorize import rank_bound
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, bias_of, select, weight_of
from lbm_lora.trainable.layout import Layout, PlannedLora, TrainPlan, modules_in

Value = TypeVar("Value")


@runtime_checkable
class Selection(Protocol):
    """Keys of a training file that select what trains; `ModelSettings` documents them."""

    @property
    def lora_rank(self) -> int | None: ...
    @property
    def lora_conv_rank(self) -> int | None: ...
    @property
    def lora_alpha(self) -> float | None: ...
    @property
    def lora_conv_alpha(self) -> float | None: ...
    @property
    def lora_target_modules(self) -> tuple[str, ...] | None: ...
    @property
    def rank_pattern(self) -> dict[str, int]: ...
    @property
    def alpha_pattern(self) -> dict[str, float]: ...
    @property
    def trainable_lora_modules(self) -> tuple[str, ...] | None: ...
    @property
    def train_biases(self) -> bool: ...
    @property
    def train_norms(self) -> bool: ...
    @property
    def use_rslora(self) -> bool: ...
    @property
    def init_lora(self) -> str: ...


def plan_new(layout: Layout, selection: Selection) -> TrainPlan:
    """Plan a new LoRA on the modules that both `lora_target_modules` and `trainable_lora_modules` select.

    If several patterns of `rank_pattern` or `alpha_pattern` match a module, the last one applies. A rank above the
    bound of a matrix is lowered to it; the scaling stays as requested.

    Raises:
        PatternError: a pattern matches nothing.
        ConfigError: nothing would train, or the initialisation does not support a rank.
    """
    targets = _selected(layout.layers, selection.lora_target_modules)
    learning = _selected([*targets, *_norms(layout, selection)], selection.trainable_lora_modules)
    chosen = {name: layout.layers[name] for name in targets if name in learning}
    if not chosen:
        raise ConfigError("trainable_lora_modules selects none of the modules that lora_target_modules selects.")
    ranks = _by_pattern(chosen, selection.rank_pattern)
    alphas = _by_pattern(chosen, selection.alpha_pattern)
    loras = tuple(
        _new_lora(name, shape, ranks.get(name), alphas.get(name), selection) for name, shape in chosen.items()
    )
    return TrainPlan(loras=loras, dense=_dense(layout, selection, learning, chosen))


def plan_continued(layout: Layout, selection: Selection, adapter: Adapter) -> TrainPlan:
    """Plan the LoRA of a file, each module with its own rank and alpha.

    Raises:
        PatternError: a pattern of `trainable_lora_modules` matches nothing in the file.
        AdapterError: the file has a module that the network lacks, or that cannot take a LoRA.
        ConfigError: nothing would train.
    """
    names = modules_in(layout, adapter)
    learning = _selected([*names, *_norms(layout, selection)], selection.trainable_lora_modules)
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
    dense = _dense(layout, selection, learning, names)
    if not dense and not any(lora.learns for lora in loras):
        raise ConfigError(f"lora_weights_path {adapter.label} has no trainable modules.")
    return TrainPlan(loras=loras, dense=dense)


def _new_lora(
    name: ModuleName, shape: tuple[int, ...], rank: int | None, alpha: float | None, selection: Selection
) -> PlannedLora:
    is_conv = len(shape) > 2
    default_rank = selection.lora_conv_rank or selection.lora_rank if is_conv else selection.lora_rank
    default_alpha = selection.lora_conv_alpha if is_conv else selection.lora_alpha
    asked = rank or default_rank
    assert asked is not None, "the settings check ensures a rank"
    alpha = alpha or default_alpha or float(asked)
    kept = min(asked, rank_bound(shape))
    if selection.init_lora == "orthogonal" and not is_conv and kept % 2:
        raise ConfigError(f"init_lora orthogonal needs even ranks, but {name} of shape {shape} can only have {kept}.")
    alpha = alpha * sqrt(kept) if selection.use_rslora else alpha * kept / asked
    return PlannedLora(name=name, rank=kept, alpha=alpha, is_conv=is_conv, learns=True)


def _selected(names: Iterable[ModuleName], patterns: Sequence[str] | None) -> list[ModuleName]:
    """Return the names that a pattern matches, in order; all of them if there are no patterns."""
    names = list(names)
    if patterns is None:
        return names
    chosen = select(names, patterns, prefix=DENOISER_PREFIX)
    return [name for name in names if name in chosen]


def _by_pattern(names: Iterable[ModuleName], patterns: Mapping[str, Value]) -> dict[ModuleName, Value]:
    """Return the value of the last matching pattern for each name that has one."""
    names = list(names)
    found: dict[ModuleName, Value] = {}
    for pattern, value in patterns.items():
        found |= dict.fromkeys(_selected(names, [pattern]), value)
    return found


def _norms(layout: Layout, selection: Selection) -> tuple[ModuleName, ...]:
    return layout.norms if selection.train_norms else ()


def _dense(
    layout: Layout, selection: Selection, learning: Iterable[ModuleName], lora_modules: Iterable[ModuleName]
) -> tuple[ParamName, ...]:
    """Return the biases of trainable lora modules, and the trainable norms."""
    learns = set(learning)
    names: list[ParamName] = []
    if selection.train_biases:
        names += [bias_of(name) for name in lora_modules if name in learns and name in layout.biased]
        if not names:
            raise ConfigError("train_biases is on, but no trainable module has a bias. Remove it.")
    if selection.train_norms:
        norms = [name for name in layout.norms if name in learns]
        if not norms:
            raise ConfigError(
                "train_norms is on, but trainable_lora_modules selects no normalisation layer. Add a pattern for "
                f"them; the first ones are {listing(layout.norms, limit=3)}."
            )
        names += [weight_of(name) for name in norms] + [bias_of(name) for name in norms if name in layout.biased]
    return tuple(names)
