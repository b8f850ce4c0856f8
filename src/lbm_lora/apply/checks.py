"""Read the LoRAs of a command and check that each fits its model: names, shapes, and the base it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lbm_lora.adapter import Adapter, LoraScale, load_adapter
from lbm_lora.apply.fuse import ScaledAdapter
from lbm_lora.apply.sdxl import adapted_to_lbm
from lbm_lora.checkpoint import Component, Fingerprint, FingerprintBuilder, differing, dtype_name, fingerprint
from lbm_lora.choices import AlphaIs
from lbm_lora.errors import AdapterError, ConfigError, Option, WrongBaseError, listing, plural
from lbm_lora.naming import ATTENTION, ParamName, leaf_of
from lbm_lora.progress import SILENT, Progress, warn


@dataclass(frozen=True)
class Fit:
    """Param names of an adapter that exist in the model, and those that do not."""

    matched: tuple[ParamName, ...]
    unmatched: tuple[ParamName, ...]


def check_fit(adapter: Adapter, shapes: Mapping[ParamName, tuple[int, ...]], *, allow_unmatched: bool = False) -> Fit:
    """Compare an adapter's names and shapes with a model's parameters."""
    matched = tuple(name for name in adapter.params if name in shapes)
    unmatched = tuple(name for name in adapter.params if name not in shapes)
    if not matched:
        raise AdapterError(
            f"{adapter.label}: none of its {len(unmatched)} parameters are in the model: {listing(unmatched, limit=3)}."
        )
    if unmatched and not allow_unmatched:
        raise AdapterError(
            f"{adapter.label}: {len(unmatched)} of {len(adapter.params)} parameters are not in the model: "
            f"{listing(unmatched)}. To apply the rest: ",
            Option("allow_unmatched"),
            ".",
        )
    for name in matched:
        if adapter.shape_of(name) != tuple(shapes[name]):
            raise AdapterError(
                f"{name}: {adapter.label} needs shape {adapter.shape_of(name)}, the model has "
                f"{tuple(shapes[name])}. Is it an adapter for this network?"
            )
    return Fit(matched, unmatched)


def check_base(
    adapter: Adapter, base: Component, *, allow_other_base: bool | None = False, found: Fingerprint | None = None
) -> None:
    """Compare the fingerprint in an adapter with the base that it is applied to.

    Args:
        allow_other_base: warn instead of failing; None if the caller offers no such option.
        found: the base's fingerprint, if already known; by default the base is read to compute it.

    An adapter without a fingerprint cannot be checked and gives a warning; so does another base that is allowed.
    """
    if not adapter.metadata.base_fingerprint:
        warn(f"{adapter.label} does not say which base it was made from, so the base cannot be checked.")
        return
    found = found or fingerprint(base)
    if found.digest == adapter.metadata.base_fingerprint:
        return
    difference = _difference(adapter, base, found)
    if allow_other_base is None:
        raise WrongBaseError(f"{difference} Give the base it was made from.")
    if not allow_other_base:
        raise WrongBaseError(f"{difference} Give the base it was made from, or use ", Option("allow_other_base"), ".")
    warn(difference)


def _difference(adapter: Adapter, base: Component, found: Fingerprint) -> str:
    """Return how a component differs from an adapter's base."""
    if found.digest == adapter.metadata.tuned_fingerprint:
        return (
            f"{base.path} is not the base of {adapter.label}, but the tuned checkpoint that it was extracted from. "
            "Are base and tuned swapped?"
        )
    names = differing(adapter.metadata.base_tensors, found)
    return (
        f"{adapter.label} was made from another base than {base.path}: {len(names)} of {len(base)} tensors differ: "
        f"{listing(names, limit=3)}.{_other_precision(adapter, base, found) if len(names) == len(base) else ''}"
    )


def _other_precision(adapter: Adapter, base: Component, found: Fingerprint) -> str:
    """Return a sentence if only the precision differs, judged by the smallest matrix."""
    for name in sorted(base.specs, key=lambda one: base.specs[one].numel):
        if len(base.specs[name].shape) > 1:
            tensor = base.read(name)
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                digests = FingerprintBuilder()
                digests.add(name, tensor.to(dtype))
                cast = replace(found, tensors={**found.tensors, **digests.build().tensors})
                if name not in differing(adapter.metadata.base_tensors, cast):
                    made, here = dtype_name(dtype), dtype_name(tensor.dtype)
                    return f" It was made from the same base in {made}; this one is {here}."
            break
    return ""


@dataclass(frozen=True, kw_only=True)
class AppliedAdapter:
    """The part of a LoRA that was applied."""

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
        lora_scale: one scale for all, or one per LoRA; see `LoraScale`.
        alpha_is: meaning of alpha in the files; see `load_adapter`.
        crop: for LoRAs made for SDXL; see `adapted_to_lbm`.
        attention_only: keep only names that contain attn1.to or attn2.to.
        allow_other_base: accept an adapter that was made from another base.
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
    part = adapter.filtered(lambda name: any(pattern in name for pattern in ATTENTION))
    if not part.params:
        raise AdapterError(
            f"{adapter.label} has no keys with attn1.to or attn2.to. Run without ", Option("attention_only"), "."
        )
    return part


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
