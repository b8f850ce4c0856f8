"""The native keys of an adapter file.

    <prefix><module>.lora_up.weight    (out, rank[, 1, 1])
    <prefix><module>.lora_down.weight  (rank, in[, kh, kw])
    <prefix><module>.alpha             fp32 scalar
    <prefix><module>.diff              dense delta of <module>.weight
    <prefix><module>.diff_b            dense delta of <module>.bias
    <prefix><param>.diff_param         dense delta of a parameter with any other last name

`.diff` and `.diff_b` are the names that ComfyUI and LyCORIS read, `.diff_param` is FastVideo's.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.adapter.module import LoraModule
from lbm_lora.errors import AdapterError, listing
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, bias_of, leaf_of, module_of, weight_of

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
DIFF, DIFF_BIAS, DIFF_PARAM = ".diff", ".diff_b", ".diff_param"
_ENDINGS = (UP, DOWN, ALPHA, DIFF_PARAM, DIFF_BIAS, DIFF)


def dense_key(prefix: str, name: ParamName) -> str:
    """The key of the dense delta of a parameter."""
    ending = {"weight": DIFF, "bias": DIFF_BIAS}.get(leaf_of(name))
    return f"{prefix}{module_of(name)}{ending}" if ending and module_of(name) else f"{prefix}{name}{DIFF_PARAM}"


def encode_module(prefix: str, module: LoraModule) -> dict[str, Tensor]:
    """The three tensors of a lora module."""
    key = prefix + module.name
    return {
        key + UP: module.up,
        key + DOWN: module.down,
        key + ALPHA: torch.tensor(module.alpha, dtype=torch.float32),
    }


def prefix_of(keys: Iterable[str]) -> str:
    """`denoiser.` where every key has it, else nothing."""
    return DENOISER_PREFIX if all(key.startswith(DENOISER_PREFIX) for key in keys) else ""


def decode(
    tensors: Mapping[str, Tensor], prefix: str, where: Path, *, unit_scaling: bool
) -> tuple[dict[ModuleName, LoraModule], dict[ParamName, Tensor]]:
    """The lora modules and dense deltas of a file's tensors.

    Args:
        unit_scaling: read every alpha as the stored rank (files of the earlier implementation).

    Raises:
        AdapterError: a key is not understood, a factor lacks its partner, or their ranks differ.
    """
    parts: dict[ModuleName, dict[str, Tensor]] = {}
    dense: dict[ParamName, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        ending = next((end for end in _ENDINGS if key.endswith(end)), None)
        stem = key.removeprefix(prefix).removesuffix(ending or "")
        if ending in (UP, DOWN, ALPHA):
            parts.setdefault(ModuleName(stem), {})[ending] = tensor
        elif ending == DIFF:
            dense[weight_of(ModuleName(stem))] = tensor
        elif ending == DIFF_BIAS:
            dense[bias_of(ModuleName(stem))] = tensor
        elif ending == DIFF_PARAM:
            dense[ParamName(stem)] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise AdapterError(
            f"{where}: {len(unknown)} of {len(tensors)} keys are not native LoRA keys: {listing(unknown, limit=3)}. "
            f"Native keys end in {', '.join(_ENDINGS)}."
        )
    return {name: _module(name, part, where, unit_scaling) for name, part in parts.items()}, dense


def _module(name: ModuleName, part: Mapping[str, Tensor], where: Path, unit_scaling: bool) -> LoraModule:
    """One lora module of its tensors, checked."""
    if UP not in part or DOWN not in part:
        missing = UP if UP not in part else DOWN
        raise AdapterError(f"{where}: {name} has no {missing[1:]}. The file is not whole.")
    up, down = part[UP], part[DOWN]
    fits = up.dim() in (2, 4) and up.dim() == down.dim() and up.shape[1] == down.shape[0]
    if not fits or any(size != 1 for size in up.shape[2:]) or 0 in (*up.shape, *down.shape):
        raise AdapterError(
            f"{where}: {name}: lora_up {tuple(up.shape)} and lora_down {tuple(down.shape)} do not belong together: "
            "the second size of lora_up and the first of lora_down are the rank, and lora_up has no kernel."
        )
    rank = down.shape[0]
    alpha = float(part[ALPHA].float().reshape(-1)[0]) if ALPHA in part and not unit_scaling else float(rank)
    return LoraModule(name, down, up, alpha)
