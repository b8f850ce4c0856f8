"""Parameters by what they are in a network: their kind, their layer, and the complete list of an LBM's denoiser."""

import re
from collections import Counter
from collections.abc import Collection, Sequence

from lbm_lora.adapter.formats.names import SGM
from lbm_lora.naming import ModuleName, ParamName, bias_of, leaf_of, module_of, weight_of
from lbm_lora.report.inspection.adapter_values import Coverage

_DEPTHS = {"down_blocks.1": 2, "down_blocks.2": 10, "mid_block": 10, "up_blocks.0": 10, "up_blocks.1": 2}
"""Layers of the transformers of each block with attention (SDXL's configuration, which LBM shares)."""
_NO_BIAS = (".to_q", ".to_k", ".to_v")
_LEAST_SHARE = 0.5  # of a file's names that must be those of an LBM


def kind_of_param(name: ParamName, shape: Sequence[int]) -> str:
    """Return `linear`, `conv 3x3`, `norm`, `bias`, `matrix` or `other` for a parameter of a network."""
    module = module_of(name)
    if "norm" in module.rpartition(".")[2]:
        return "norm"
    if leaf_of(name) == "bias" and len(shape) == 1:
        return "bias"
    if leaf_of(name) != "weight" or len(shape) not in (2, 4):
        return "matrix" if len(shape) > 1 else "other"
    return "linear" if len(shape) == 2 else f"conv {shape[2]}x{shape[3]}"


def layer_of(name: ParamName) -> str:
    """Return what a parameter's layer does, alike in every block: `attn1.to_q`, `ff.net`, `conv1`, `norm`."""
    parts = [part for part in module_of(name).split(".") if not part.isdigit()]
    last = parts[-1]
    for place in ("attn1", "attn2", "ff"):
        if place in parts[:-1]:
            return ".".join(parts[parts.index(place) :])
    if "norm" in last:
        return "norm"
    return re.sub(r"^(conv|linear)_(in|out|\d+)$", r"\1", last) or "other"


def _lbm_modules() -> list[ModuleName]:
    """The modules of LBM's denoiser: the table's, without layers that are deeper and shortcuts of equal widths."""
    return [name for name in SGM if _is_deep_enough(name) and _has_shortcut(name)]


def _is_deep_enough(name: ModuleName) -> bool:
    found = re.search(r"^(\w+?_block(?:s\.\d+)?)\..*transformer_blocks\.(\d+)\.", name)
    return found is None or int(found[2]) < _DEPTHS.get(found[1], 0)


def _has_shortcut(name: ModuleName) -> bool:
    """Whether a resnet's widths differ: in up blocks, and in the first of each wider down block."""
    if not name.endswith(".conv_shortcut"):
        return True
    return name.startswith(("up_blocks.", "down_blocks.1.resnets.0.", "down_blocks.2.resnets.0."))


LBM_PARAMS: tuple[ParamName, ...] = tuple(
    param
    for name in _lbm_modules()
    for param in ([weight_of(name)] if name.endswith(_NO_BIAS) else [weight_of(name), bias_of(name)])
)
"""The 1676 parameters of LBM's denoiser; names only, since widths differ between models."""


def coverage_of(names: Collection[ParamName]) -> Coverage | None:
    """Return which of an LBM's parameters are not among `names`; None if most of those are not an LBM's."""
    known = frozenset(LBM_PARAMS)
    unexpected = tuple(name for name in names if name not in known)
    if len(unexpected) > _LEAST_SHARE * len(names) or not names:
        return None
    missing = tuple(name for name in LBM_PARAMS if name not in names)
    return Coverage(
        tensors=len(LBM_PARAMS),
        missing=missing,
        missing_kinds=dict(Counter(map(_kind_by_name, missing)).most_common()),
        unexpected=unexpected,
    )


def _kind_by_name(name: ParamName) -> str:
    """The kind of an LBM's parameter, whose shape is not known: `linear`, `conv`, `norm` or `bias`."""
    layer = module_of(name).rpartition(".")[2]
    if "norm" in layer or leaf_of(name) == "bias":
        return "norm" if "norm" in layer else "bias"
    return "conv" if layer.startswith("conv") else "linear"
