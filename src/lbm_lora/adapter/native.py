"""Native keys of an adapter file.

    <prefix><module>.lora_up.weight    (out, rank[, 1, 1])
    <prefix><module>.lora_down.weight  (rank, in[, kh, kw])
    <prefix><module>.alpha             fp32 scalar
    <prefix><module>.lora_up.int8      instead of the three above, factors in 8 bits: (out, rank[, 1, 1]),
    <prefix><module>.lora_down.int8    (rank, in[, kh, kw]),
    <prefix><module>.lora_unit         and fp32 (rank,): the delta is (up * unit) @ down
    <prefix><module>.diff              dense delta of <module>.weight
    <prefix><module>.diff_b            dense delta of <module>.bias
    <prefix><param>.diff_param         dense delta of a parameter with any other last name
    <prefix>....dense, ....dense_b, ....dense_param    with factors in 8 bits, instead of the three above

A file with factors in 8 bits uses no key that another reader knows: the reader would take the integers for weights, or
read the dense deltas without the factors. ComfyUI and LyCORIS read `.diff` and `.diff_b`; `.diff_param` is FastVideo's.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.adapter.module import LoraModule
from lbm_lora.checkpoint import TensorSpec
from lbm_lora.errors import AdapterError, listing
from lbm_lora.factorize import EightBit, down_shape, quantize, up_shape
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, bias_of, leaf_of, module_of, weight_of

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
UP_INT8, DOWN_INT8, UNIT = ".lora_up.int8", ".lora_down.int8", ".lora_unit"
DIFF, DIFF_BIAS, DIFF_PARAM = ".diff", ".diff_b", ".diff_param"
DENSE, DENSE_BIAS, DENSE_PARAM = ".dense", ".dense_b", ".dense_param"
_FACTORS = (UP, DOWN, ALPHA, UP_INT8, DOWN_INT8, UNIT)
_ENDINGS = (*_FACTORS, DIFF_PARAM, DIFF_BIAS, DIFF, DENSE_PARAM, DENSE_BIAS, DENSE)


def dense_key(prefix: str, name: ParamName, dtype: torch.dtype) -> str:
    """Return the key of a parameter's dense delta."""
    weight, bias, other = (DENSE, DENSE_BIAS, DENSE_PARAM) if dtype == torch.int8 else (DIFF, DIFF_BIAS, DIFF_PARAM)
    ending = {"weight": weight, "bias": bias}.get(leaf_of(name))
    return f"{prefix}{module_of(name)}{ending}" if ending and module_of(name) else f"{prefix}{name}{other}"


def module_specs(
    prefix: str, name: ModuleName, shape: tuple[int, ...], rank: int, dtype: torch.dtype
) -> dict[str, TensorSpec]:
    """Return keys, dtypes and shapes of the three tensors of a lora module."""
    key, up, down = prefix + name, up_shape(shape, rank), down_shape(shape, rank)
    if dtype == torch.int8:
        return {
            key + UP_INT8: TensorSpec(dtype, up),
            key + DOWN_INT8: TensorSpec(dtype, down),
            key + UNIT: TensorSpec(torch.float32, (rank,)),
        }
    return {
        key + UP: TensorSpec(dtype, up),
        key + DOWN: TensorSpec(dtype, down),
        key + ALPHA: TensorSpec(torch.float32, ()),
    }


def encode_module(prefix: str, module: LoraModule, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the three tensors of a lora module, as specified by `module_specs`.

    Args:
        dtype: dtype of its factors in the file: their own, or int8, which also holds their scaling.
    """
    key = prefix + module.name
    if dtype == torch.int8:
        factors = module.factors()
        stored = quantize(factors.up, factors.down)
        return {
            key + UP_INT8: stored.up.reshape(module.up.shape),
            key + DOWN_INT8: stored.down.reshape(module.down.shape),
            key + UNIT: stored.unit,
        }
    return {
        key + UP: module.up,
        key + DOWN: module.down,
        key + ALPHA: torch.tensor(module.alpha, dtype=torch.float32),
    }


def prefix_of(keys: Iterable[str]) -> str:
    """Return `denoiser.` if every key starts with it, else an empty string."""
    return DENOISER_PREFIX if all(key.startswith(DENOISER_PREFIX) for key in keys) else ""


def decode(
    tensors: Mapping[str, Tensor], prefix: str, where: Path
) -> tuple[dict[ModuleName, LoraModule], dict[ParamName, Tensor]]:
    parts: dict[ModuleName, dict[str, Tensor]] = {}
    dense: dict[ParamName, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        ending = next((end for end in _ENDINGS if key.endswith(end)), None)
        stem = key.removeprefix(prefix).removesuffix(ending or "")
        if ending is None:
            unknown.append(key)
        elif ending in _FACTORS:
            parts.setdefault(ModuleName(stem), {})[ending] = tensor
        else:
            module = ModuleName(stem)
            is_weight, is_bias = ending in (DIFF, DENSE), ending in (DIFF_BIAS, DENSE_BIAS)
            name = weight_of(module) if is_weight else bias_of(module) if is_bias else ParamName(stem)
            if name in dense:
                raise AdapterError(f"{where}: {name} has two dense deltas. Remove one of them.")
            dense[name] = tensor
    if unknown:
        raise AdapterError(
            f"{where}: {len(unknown)} of {len(tensors)} keys are not native LoRA keys: {listing(unknown, limit=3)}. "
            f"Native keys end in {', '.join(_ENDINGS)}."
        )
    return {name: module_of_parts(name, part, where) for name, part in parts.items()}, dense


def is_eight_bit(keys: Iterable[str]) -> bool:
    """Return whether a file with these keys has factors in 8 bits."""
    keys = list(keys)
    has_names = any(key.endswith((UNIT, DENSE, DENSE_BIAS, DENSE_PARAM)) for key in keys)
    return has_names and not any(key.endswith(UP) for key in keys)


def module_of_parts(name: ModuleName, part: Mapping[str, Tensor], where: Path) -> LoraModule:
    """Return a lora module of the tensors of its keys, by ending; without an alpha its scaling is 1."""
    is_int8 = any(ending in part for ending in (UP_INT8, DOWN_INT8, UNIT))
    missing = [ending for ending in ((UP_INT8, DOWN_INT8, UNIT) if is_int8 else (UP, DOWN)) if ending not in part]
    if missing:
        raise AdapterError(f"{where}: {name} has no {missing[0][1:]}. The file is incomplete.")
    if is_int8 and not part.keys().isdisjoint((UP, DOWN, ALPHA)):
        raise AdapterError(f"{where}: {name} has factors in 8 bits and others. Remove one of them.")
    up, down = (part[UP_INT8], part[DOWN_INT8]) if is_int8 else (part[UP], part[DOWN])
    fits = up.dim() in (2, 4) and up.dim() == down.dim() and up.shape[1] == down.shape[0]
    if not fits or any(size != 1 for size in up.shape[2:]) or 0 in (*up.shape, *down.shape):
        raise AdapterError(
            f"{where}: {name}: lora_up {tuple(up.shape)} and lora_down {tuple(down.shape)} do not fit together: "
            "the second size of lora_up and the first of lora_down must be the rank, and lora_up must have no kernel."
        )
    rank = down.shape[0]
    if not is_int8:
        return LoraModule(name, down, up, alpha_in(part[ALPHA], name, where) if ALPHA in part else float(rank))
    unit = part[UNIT]
    if up.dtype != torch.int8 or down.dtype != torch.int8 or unit.shape != (rank,) or unit.dtype != torch.float32:
        raise AdapterError(
            f"{where}: {name}: lora_up {TensorSpec.of(up)}, lora_down {TensorSpec.of(down)} and lora_unit "
            f"{TensorSpec.of(unit)} do not fit together: expected int8, int8, and one fp32 number per rank."
        )
    if not (torch.isfinite(unit) & (unit > 0)).all():
        raise AdapterError(f"{where}: {name}: lora_unit must be above 0 and finite. The file is damaged.")
    wide = EightBit(up.flatten(1), down.flatten(1), unit).factors()
    return LoraModule(name, wide.down.reshape(down.shape), wide.up.reshape(up.shape), float(rank))


def alpha_in(stored: Tensor, name: ModuleName, where: Path) -> float:
    """Return a module's alpha as a file holds it."""
    if stored.numel() != 1:
        raise AdapterError(
            f"{where}: the alpha of {name} has shape {tuple(stored.shape)}, but it must be one number. It is damaged."
        )
    return float(stored.float())
