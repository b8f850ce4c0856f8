"""Keys of a foreign file by module and role: `x.lora_A.weight` is the `down` of the module that x names.

The endings are those of sd-scripts, LyCORIS, ComfyUI (which tries all of the factors' endings), PEFT, diffusers and
FastVideo.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from lbm_lora.errors import AdapterError, listing, plural
from lbm_lora.naming import ModuleName, ParamName, bias_of, weight_of

_FACTORS = {
    ".lora_up.weight": "up", ".lora_down.weight": "down",
    "_lora.up.weight": "up", "_lora.down.weight": "down",
    ".lora.up.weight": "up", ".lora.down.weight": "down",
    ".lora_B.weight": "up", ".lora_A.weight": "down",
    ".lora_B.default.weight": "up", ".lora_A.default.weight": "down",
    ".lora_linear_layer.up.weight": "up", ".lora_linear_layer.down.weight": "down",
    ".lora_B": "up", ".lora_A": "down",
    ".lora_mid.weight": "mid", ".alpha": "alpha", ".dora_scale": "dora_scale",
    ".hada_w1_a": "hada_w1_a", ".hada_w1_b": "hada_w1_b", ".hada_w2_a": "hada_w2_a", ".hada_w2_b": "hada_w2_b",
    ".hada_t1": "hada_t1", ".hada_t2": "hada_t2",
    ".lokr_w1": "lokr_w1", ".lokr_w1_a": "lokr_w1_a", ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2", ".lokr_w2_a": "lokr_w2_a", ".lokr_w2_b": "lokr_w2_b", ".lokr_t2": "lokr_t2",
}  # fmt: skip
Leaf = Literal["weight", "bias", ""]
_DELTAS: Mapping[str, Leaf] = {
    ".diff": "weight", ".w_norm": "weight", ".diff_b": "bias", ".b_norm": "bias", ".diff_param": "",
}  # fmt: skip
_VALUES: Mapping[str, Leaf] = {".set_weight": "weight", ".set_param": ""}
_ENDINGS = sorted((*_FACTORS, *_DELTAS, *_VALUES), key=len, reverse=True)
_TEXT_ENCODERS = ("lora_te", "lycoris_te", "lycoris_text_model", "text_encoder", "text_model.", "te_", "te1_", "te2_")
_EMBEDDINGS = ("label_emb", "add_embedding")


@dataclass(frozen=True)
class Grouped:
    """Tensors of a file in the denoiser's terms.

    Attributes:
        factors: module -> role -> tensor; roles are `up`, `down`, `mid`, `alpha`, `dora_scale`, `hada_*` and `lokr_*`.
        deltas: dense deltas.
        values: values that replace the base's.
        left_out: keys of parts that an LBM lacks: text encoders, SDXL's text and size embedding.
    """

    factors: dict[ModuleName, dict[str, Tensor]] = field(default_factory=dict[ModuleName, dict[str, Tensor]])
    deltas: dict[ParamName, Tensor] = field(default_factory=dict[ParamName, Tensor])
    values: dict[ParamName, Tensor] = field(default_factory=dict[ParamName, Tensor])
    left_out: list[str] = field(default_factory=list[str])


def grouped(tensors: Mapping[str, Tensor], named: Callable[[str], ModuleName | None], where: Path) -> Grouped:
    """Return the tensors of a file by module and role.

    Args:
        named: maps the part of a key before its ending to a module; None if it matches none.
    """
    found = Grouped()
    endless: list[str] = []
    unnamed: list[str] = []
    twice: list[str] = []
    for key, tensor in tensors.items():
        if is_of_another_part(key):
            found.left_out.append(key)
            continue
        ending = next((end for end in _ENDINGS if key.endswith(end)), None)
        stem = key.removesuffix(ending or "")
        module = named(stem)
        if ending is None:
            endless.append(key)
        elif module is None:
            unnamed.append(stem)
        elif not _place(found, module, ending, tensor):
            twice.append(key)
    _check(where, endless, "is not a key of a LoRA that can be read", "are not keys of a LoRA that can be read")
    unknown = list(dict.fromkeys(unnamed))
    _check(where, unknown, "is not a module of an LBM's denoiser", "are not modules of an LBM's denoiser")
    check_unrepeated(twice, where)
    return found


def check_unrepeated(keys: list[str], where: Path) -> None:
    """Refuse keys that mean the same as others of their file: one of them would count, unnoticed."""
    _check(where, keys, "repeats what another key says", "repeat what other keys say")


def is_of_another_part(key: str) -> bool:
    """Return whether a key is of a part that an LBM lacks: a text encoder, SDXL's text and size embedding."""
    return key.startswith(_TEXT_ENCODERS) or any(part in key for part in _EMBEDDINGS)


def _place(found: Grouped, module: ModuleName, ending: str, tensor: Tensor) -> bool:
    """Put a tensor in its place; return False if the place is taken."""
    if ending in _FACTORS:
        parts, role = found.factors.setdefault(module, {}), _FACTORS[ending]
        return parts.setdefault(role, tensor) is tensor
    leaf = (_DELTAS | _VALUES)[ending]  # pyright: ignore[reportOperatorIssue, reportUnknownVariableType]
    name = weight_of(module) if leaf == "weight" else bias_of(module) if leaf == "bias" else ParamName(module)
    return (found.deltas if ending in _DELTAS else found.values).setdefault(name, tensor) is tensor


def _check(where: Path, names: list[str], one: str, several: str) -> None:
    if len(names) == 1:
        raise AdapterError(f"{where}: {names[0]} {one}.")
    if names:
        raise AdapterError(f"{where}: {plural(len(names), 'name')} {several}: {listing(names, limit=3)}.")
