"""The LoRAs of a command, read and checked against the base that they go on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.apply.checks import check_base, check_fit
from lbm_lora.apply.fuse import ScaledAdapter
from lbm_lora.checkpoint import Component
from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import AdapterError, ConfigError, Option, listing
from lbm_lora.naming import ATTENTION, ParamName
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class AppliedAdapter:
    """What became of one LoRA."""

    path: Path
    """Of its file; `LoRA 1` for the first of them where it has none."""
    lora_scale: float
    modules: int
    """Lora modules that fit the base."""
    dense: int
    """Dense deltas (biases, norms) that fit the base."""
    unmatched: tuple[str, ...]
    """Param names of the file that the base does not have."""


def fitting_adapters(
    base: Component,
    loras: Sequence[Path | Adapter],
    lora_scale: Sequence[float],
    *,
    alpha_is: AlphaIs = "auto",
    attention_only: bool = False,
    allow_other_base: bool = False,
    allow_unmatched: bool = False,
    progress: Progress = SILENT,
) -> tuple[list[ScaledAdapter], tuple[AppliedAdapter, ...]]:
    """The adapters with their factors, cut to what the base has, and what is applied of each.

    Args:
        base: the component that they go on.
        loras: adapter files, or adapters.
        lora_scale: one for all, or one for each.
        alpha_is: what alpha in the files means; see `load_adapter`.
        attention_only: keep only names that contain attn1.to or attn2.to.
        allow_other_base: accept an adapter that was made from another base.
        allow_unmatched: leave names of an adapter aside that are not in the base.
        progress: gets the documented line about each adapter.

    Raises:
        ConfigError: a scale that is not finite, or another number of scales than of files.
        AdapterError: a file is no adapter, or does not fit the base.
        WrongBaseError: an adapter was made from another base.
    """
    shapes = {name: spec.shape for name, spec in base.specs.items()}
    scaled: list[ScaledAdapter] = []
    applied: list[AppliedAdapter] = []
    for lora, scale in zip(loras, scales_for(len(loras), lora_scale), strict=True):
        whole = lora if isinstance(lora, Adapter) else load_adapter(lora, alpha_is)
        adapter = _attention_of(whole) if attention_only else whole
        fit = check_fit(adapter, shapes, allow_unmatched=allow_unmatched)
        check_base(adapter, base, allow_other_base=allow_other_base)
        kept = adapter.filtered(set(fit.matched).__contains__)
        scaled.append(ScaledAdapter(kept, scale))
        applied.append(
            AppliedAdapter(
                path=whole.path or Path(f"LoRA {len(applied) + 1}"),
                lora_scale=scale,
                modules=len(kept.modules),
                dense=len(kept.dense),
                unmatched=tuple(fit.unmatched),
            )
        )
        _say(adapter, applied[-1], "attention" if attention_only else "all", progress)
    return scaled, tuple(applied)


def _attention_of(adapter: Adapter) -> Adapter:
    part = adapter.filtered(_is_attention)
    if not part.params:
        raise AdapterError(
            f"{adapter.label} has no key with attn1.to or attn2.to. Leave ", Option("attention_only"), " out."
        )
    return part


def _is_attention(name: ParamName) -> bool:
    return any(pattern in name for pattern in ATTENTION)


def _say(adapter: Adapter, applied: AppliedAdapter, which: str, progress: Progress) -> None:
    """The documented line, and one for the deltas that the documented format does not know."""
    total = len(adapter.modules)
    rate = 100 * applied.modules / total if total else 100.0
    counts = f"{applied.modules} success, {total - applied.modules} failed"
    progress.note(f"Native LoRA applied ({which} layers): {counts} ({rate:.1f}% success rate)")
    if adapter.dense:
        progress.note(f"Dense deltas (biases, norms) applied: {applied.dense} of {len(adapter.dense)}")


def scales_for(count: int, scales: Sequence[float]) -> tuple[float, ...]:
    """One `lora_scale` for each of `count` LoRAs: the given ones, or the only one for all.

    Raises:
        ConfigError: a scale is not finite, or their number fits neither.
    """
    if not all(math.isfinite(scale) for scale in scales):
        raise ConfigError(Option("lora_scale"), f" must be a number, not {listing(map(str, scales))}.")
    if len(scales) == 1:
        return tuple(scales) * count
    if len(scales) != count:
        raise ConfigError(
            Option("lora_scale"),
            f" has {len(scales)} values for {count} LoRAs. Give one for all, or one for each.",
        )
    return tuple(scales)
