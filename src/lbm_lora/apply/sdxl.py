"""Fit a LoRA made for SDXL to an LBM.

An LBM's denoiser is SDXL's UNet with two changes. The keys and values of attn2 (cross-attention) are computed from the
image: their weights have as many columns as the block is wide, not the 2048 of SDXL's text. And there is no added text
and time embedding. Everything else has the same names and shapes.

So the deltas of attn2's keys and values are left out, or cropped by the rule that makes an exact base of SDXL: the
first columns. Deltas of the text encoders and of the added embedding are always left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.errors import AdapterError, Option, listing, plural
from lbm_lora.naming import ModuleName, ParamName, weight_of
from lbm_lora.progress import warn

_OF_TEXT = ("attn2.to_k.weight", "attn2.to_v.weight")
_NOT_IN_LBM = ("add_embedding.", "label_emb.", "text_encoder.", "text_encoder_2.", "lora_te")


@dataclass(frozen=True)
class Adapted:
    """The part of an adapter that fits an LBM.

    Attributes:
        left_out: param names of the given adapter that are not in it.
    """

    adapter: Adapter
    left_out: tuple[ParamName, ...] = ()
    cropped: tuple[ParamName, ...] = ()


def adapted_to_lbm(adapter: Adapter, shapes: Mapping[ParamName, tuple[int, ...]], *, crop: bool = False) -> Adapted:
    """Fit an adapter that was made for SDXL to an LBM, with a warning that says what was left out or cropped.

    An adapter is recognised by its shapes: its deltas of attn2.to_k and attn2.to_v have more columns than the LBM's
    weights, and as many rows. Any other adapter is returned as it is.

    Args:
        shapes: param name -> shape of the LBM's denoiser.
    """
    wider = tuple(name for name in adapter.params if name.endswith(_OF_TEXT) and _is_wider(adapter, name, shapes))
    foreign = tuple(name for name in adapter.params if name.startswith(_NOT_IN_LBM) and name not in shapes)
    if not wider and not foreign:
        return Adapted(adapter)
    gone = set(foreign if crop else (*wider, *foreign))
    kept = adapter.filtered(lambda name: name not in gone)
    if not kept.params:
        more = (" To apply their first columns: ", Option("crop"), ".") if wider else ()
        raise AdapterError(
            f"{adapter.label} was made for SDXL, and changes only what an LBM lacks: {listing(sorted(gone), limit=3)}.",
            *more,
        )
    if crop:
        kept = _cropped(kept, {name: shapes[name][1] for name in wider})
    _say(adapter, wider, foreign, crop=crop)
    return Adapted(kept, tuple(name for name in adapter.params if name in gone), wider if crop else ())


def _is_wider(adapter: Adapter, name: ParamName, shapes: Mapping[ParamName, tuple[int, ...]]) -> bool:
    here, there = adapter.shape_of(name), shapes.get(name)
    if here is None or there is None or len(here) != 2 or len(there) != 2:
        return False
    return here[0] == there[0] and here[1] > there[1]


def _cropped(adapter: Adapter, columns: Mapping[ParamName, int]) -> Adapter:

    def module(name: ModuleName, whole: LoraModule) -> LoraModule:
        count = columns.get(weight_of(name))
        return whole if count is None else replace(whole, down=whole.down[:, :count].contiguous())

    adapter = adapter.unpacked()
    modules = {name: module(name, whole) for name, whole in adapter.modules.items()}
    cut = {name: delta[:, : columns[name]].contiguous() for name, delta in adapter.dense.items() if name in columns}
    return adapter.holding(modules, {**adapter.dense, **cut}, adapter.dtype)


def _say(adapter: Adapter, wider: tuple[ParamName, ...], foreign: tuple[ParamName, ...], *, crop: bool) -> None:
    parts: list[str | Option] = [f"{adapter.label} was made for SDXL."]
    deltas = f"{plural(len(wider), 'delta')} of attn2.to_k and attn2.to_v"
    if wider and crop:
        parts.append(f" Cropped to their first columns: {deltas}.")
    elif wider:
        reason = "because an LBM's attn2 sees the image, not text"
        parts += [f" Left out: {deltas}, {reason}. To apply their first columns: ", Option("crop"), "."]
    if foreign:
        count = plural(len(foreign), "delta")
        parts.append(f" Left out: {count} of parts that an LBM lacks: {listing(foreign, limit=3)}.")
    warn(*parts)
