"""Read the LoRAs of a command and check them against their base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.adapter import Adapter, LoraScale, load_adapter
from lbm_lora.apply.checks import check_base, check_fit
from lbm_lora.apply.fuse import ScaledAdapter
from lbm_lora.apply.sdxl import adapted_to_lbm
from lbm_lora.checkpoint import Component, fingerprint
from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import AdapterError, ConfigError, Option, plural
from lbm_lora.naming import ATTENTION, ParamName, leaf_of
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class AppliedAdapter:
    """How much of one LoRA was applied."""

    path: Path
    """Name of its file; `LoRA 1` and so on if it has none."""
    lora_scale: float | str
    """A number, or the text of numbers by layer."""
    modules: int
    """Lora modules that fit the base."""
    dense: int
    """Dense deltas (biases, norms) that fit the base."""
    unmatched: tuple[str, ...]
    """Param names of the file that the base does not have."""
    left_out: tuple[str, ...] = ()
    """Param names of a LoRA made for SDXL that mean nothing in an LBM."""


def fitting_adapters(
    base: Component,
    loras: Sequence[Path | Adapter],
    lora_scale: Sequence[float | str],
    *,
    alpha_is: AlphaIs = "auto",
    crop: bool = False,
    attention_only: bool = False,
    allow_other_base: bool = False,
    allow_unmatched: bool = False,
    progress: Progress = SILENT,
) -> tuple[list[ScaledAdapter], tuple[AppliedAdapter, ...]]:
    """Return the adapters with their scales, limited to parameters of the base, and how much of each is applied.

    Args:
        base: the component that they are applied to.
        loras: adapter files, or adapters.
        lora_scale: one scale for all, or one per LoRA; see `LoraScale`.
        alpha_is: meaning of alpha in the files; see `load_adapter`.
        crop: for LoRAs made for SDXL; see `adapted_to_lbm`.
        attention_only: keep only names that contain attn1.to or attn2.to.
        allow_other_base: accept an adapter that was made from another base.
        allow_unmatched: skip names of an adapter that are not in the base.
        progress: receives the documented line about each adapter.
    """
    shapes = base.shapes
    whole: list[Adapter] = []
    scaled: list[ScaledAdapter] = []
    applied: list[AppliedAdapter] = []
    for lora, scale in zip(loras, scales_for(len(loras), lora_scale), strict=True):
        read = lora if isinstance(lora, Adapter) else load_adapter(lora, alpha_is, base=base)
        adapted = adapted_to_lbm(read, shapes, crop=crop)
        adapter = _attention_of(adapted.adapter) if attention_only else adapted.adapter
        fit = check_fit(adapter, shapes, allow_unmatched=allow_unmatched)
        kept = adapter.filtered(set(fit.matched).__contains__)
        scaled.append(ScaledAdapter(kept, scale.plain))
        _ = scaled[-1].scales  # a pattern without a match is refused before the base is read
        whole.append(adapter)
        applied.append(
            AppliedAdapter(
                path=read.path or Path(f"LoRA {len(applied) + 1}"),
                lora_scale=scale.plain,
                modules=len(kept.modules),
                dense=len(kept.dense),
                unmatched=tuple(fit.unmatched),
                left_out=adapted.left_out,
            )
        )
    found = fingerprint(base) if any(adapter.metadata.base_fingerprint for adapter in whole) else None
    for adapter, made in zip(whole, applied, strict=True):
        check_base(adapter, base, allow_other_base=allow_other_base, found=found)
        _say(adapter, made, "attention" if attention_only else "all", progress)
    return scaled, tuple(applied)


def _attention_of(adapter: Adapter) -> Adapter:
    part = adapter.filtered(_is_attention)
    if not part.params:
        raise AdapterError(
            f"{adapter.label} has no keys with attn1.to or attn2.to. Run without ", Option("attention_only"), "."
        )
    return part


def _is_attention(name: ParamName) -> bool:
    return any(pattern in name for pattern in ATTENTION)


def _say(adapter: Adapter, applied: AppliedAdapter, which: str, progress: Progress) -> None:
    """Report the documented line on lora modules, and one for each kind of dense deltas, which it lacks."""
    total = len(adapter.modules)
    if total:
        rate = 100 * applied.modules / total
        counts = f"{applied.modules} success, {total - applied.modules} failed"
        progress.note(f"Native LoRA applied ({which} layers): {counts} ({rate:.1f}% success rate)")
    matrices = [name for name, delta in adapter.dense.items() if leaf_of(name) == "weight" and delta.dim() > 1]
    others = adapter.dense.keys() - set(matrices)
    for what, names in (("Dense matrices", matrices), ("Dense deltas (biases, norms)", others)):
        if names:
            left = len(set(names) & set(applied.unmatched))
            progress.note(f"{what} applied: {len(names) - left:,} of {len(names):,}")


def scales_for(count: int, scales: Sequence[float | str | LoraScale]) -> tuple[LoraScale, ...]:
    """Return one `lora_scale` for each of `count` LoRAs: the given ones, or the single one for all."""
    parsed = tuple(map(LoraScale.parse, scales))
    if len(parsed) == 1:
        return parsed * count
    if len(parsed) != count:
        raise ConfigError(
            Option("lora_scale"),
            f" has {plural(len(parsed), 'value')} for {plural(count, 'LoRA')}. Give one for all, or one per LoRA.",
        )
    return parsed
