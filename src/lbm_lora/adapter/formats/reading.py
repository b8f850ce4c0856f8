"""Read a foreign file completely: every key becomes part of a lora module or a dense delta, or is an error.

Keys are a module and an ending: those of sd-scripts, LyCORIS, ComfyUI (which tries all of the factors' endings), PEFT,
diffusers and FastVideo. What is rebuilt, all of it exactly:

- Tucker factors (`lora_mid`) are merged into `down`. LoHa and LoKr become factors, or dense deltas where those are
  smaller.
- 1x1 convolutions become matrices where the denoiser has a matrix (`proj_in`, `proj_out` of SD 1.5's files), and
  kernels that a file flattens (LoHa, LoKr) are those of the module.
- An early implementation of LoRA for LBM stored `lora_up` and `lora_down` of convolutions in each other's place: its
  "up" has the kernel. A file with such a module has all its convolutions turned around.
- DoRA and values that replace the base's (`.set_weight`, `.set_param`) become dense deltas, if the base is at hand.

A missing alpha is the rank. LoHa and LoKr are scaled once by alpha / rank, as LyCORIS does while it trains and ComfyUI
does always; `merge_to` of LyCORIS 4.1.3 scales them twice.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lbm_lora.adapter.formats.codec import Decoded, Source
from lbm_lora.adapter.formats.names import kernel_of
from lbm_lora.adapter.formats.rebuild import dora_delta, dora_note, loha, lokr, with_mid
from lbm_lora.adapter.metadata import EXPORT_KEY
from lbm_lora.adapter.module import LoraModule
from lbm_lora.adapter.native import alpha_in
from lbm_lora.errors import AdapterError, InputError, Option, listing, plural
from lbm_lora.factorize import Factors
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, bias_of, weight_of

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
_DELTAS = {".diff": weight_of, ".w_norm": weight_of, ".diff_b": bias_of, ".b_norm": bias_of, ".diff_param": ParamName}
_VALUES = {".set_weight": weight_of, ".set_param": ParamName}
_ENDINGS = sorted((*_FACTORS, *_DELTAS, *_VALUES), key=len, reverse=True)
_TEXT_ENCODERS = ("lora_te", "lycoris_te", "lycoris_text_model", "text_encoder", "text_model.", "te_", "te1_", "te2_")
_EMBEDDINGS = ("label_emb", "add_embedding")
_EPSILON = torch.finfo(torch.float32).eps  # added to the norm by LyCORIS
_Rebuilt = TypeVar("_Rebuilt")


@dataclass(frozen=True)
class Grouped:
    """Tensors of a file in the denoiser's terms.

    Attributes:
        factors: module -> role -> tensor; roles are `up`, `down`, `mid`, `alpha`, `dora_scale`, `hada_*` and `lokr_*`.
    """

    factors: dict[ModuleName, dict[str, Tensor]] = field(default_factory=dict[ModuleName, dict[str, Tensor]])
    deltas: dict[ParamName, Tensor] = field(default_factory=dict[ParamName, Tensor])
    values: dict[ParamName, Tensor] = field(default_factory=dict[ParamName, Tensor])
    left_out: list[str] = field(default_factory=list[str])

    def has_room(self, module: ModuleName, ending: str, tensor: Tensor) -> bool:
        """Put a tensor in its place; return False if the place is taken."""
        if ending in _FACTORS:
            return self.factors.setdefault(module, {}).setdefault(_FACTORS[ending], tensor) is tensor
        if ending in _DELTAS:
            return self.deltas.setdefault(_DELTAS[ending](module), tensor) is tensor
        return self.values.setdefault(_VALUES[ending](module), tensor) is tensor


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
        elif not found.has_room(module, ending, tensor):
            twice.append(key)
    _check(where, endless, "is not a key of a LoRA that can be read", "are not keys of a LoRA that can be read")
    unknown = list(dict.fromkeys(unnamed))
    _check(where, unknown, "is not a module of an LBM's denoiser", "are not modules of an LBM's denoiser")
    check_unrepeated(twice, where)
    return found


def check_unrepeated(keys: list[str], where: Path) -> None:
    """Refuse keys that mean the same as others of their file: one of them would count, unnoticed."""
    _check(where, keys, "repeats what another key says", "repeat what other keys say")


def _check(where: Path, names: list[str], one: str, several: str) -> None:
    if len(names) == 1:
        raise AdapterError(f"{where}: {names[0]} {one}.")
    if names:
        raise AdapterError(f"{where}: {plural(len(names), 'name')} {several}: {listing(names, limit=3)}.")


def is_of_another_part(key: str) -> bool:
    """Return whether a key is of a part that an LBM lacks: a text encoder, SDXL's text and size embedding."""
    return key.startswith(_TEXT_ENCODERS) or any(part in key for part in _EMBEDDINGS)


def note_left_out(keys: Collection[str], source: Source) -> list[str]:
    """Return what to say of keys of other parts; a file may not hold them alone."""
    if len(keys) == len(source.tensors):
        raise AdapterError(
            f"{source.path} holds a LoRA of text encoders alone: {listing(keys, limit=3)}. An LBM has no text "
            "encoder, so nothing in the file applies."
        )
    what = "of parts that an LBM lacks (text encoders, embeddings of text and size)"
    return [f"{plural(len(keys), 'key')} left out, {what}: {listing(keys, limit=3)}."] if keys else []


def read(source: Source, named: Callable[[str], ModuleName | None]) -> Decoded:
    """Return the contents of a file."""
    found = grouped(source.tensors, named, source.path)
    left_out = note_left_out(found.left_out, source)
    reader = _Reader(source, _is_turned_around(found))
    modules: dict[ModuleName, LoraModule] = {}
    dense = dict(found.deltas)
    rebuilt: Counter[str] = Counter()
    for name, parts in found.factors.items():
        delta, kind = reader.module(name, parts)
        rebuilt[kind] += 1
        if isinstance(delta, LoraModule):
            modules[name] = delta
        else:
            add_delta(dense, weight_of(name), delta, source)
    for name, value in found.values.items():
        base = _base_value(source, name, "a value that replaces the base's")
        add_delta(dense, name, value.float() - base.float(), source)
    for name in dense.keys() & {weight_of(name) for name in modules}:
        raise AdapterError(f"{source.path}: {name} has both factors and a dense delta. Remove one of them.")
    exact = [f"{plural(count, 'module')} of {kind}" for kind, count in rebuilt.items() if kind not in ("", "DoRA")]
    notes = [f"{' and '.join(exact)}: rebuilt exactly, as factors or as dense deltas."] if exact else []
    if rebuilt["DoRA"]:
        notes.append(f"{dora_note(rebuilt['DoRA'], dense.values())} `lbm-lora resize` makes factors of them.")
    return source.adapter(modules, dense, DENOISER_PREFIX), (*notes, *left_out)


def add_delta(dense: dict[ParamName, Tensor], name: ParamName, delta: Tensor, source: Source) -> None:
    """Add a delta; a file may hold one for each parameter."""
    if name in dense:
        raise AdapterError(f"{source.path}: {name} has two deltas. Remove one of them.")
    dense[name] = delta


def _is_turned_around(found: Grouped) -> bool:
    return any(
        parts["up"].dim() == 4 and parts["up"].shape[2:].numel() > 1 and parts["down"].shape[2:].numel() == 1
        for parts in found.factors.values()
        if "up" in parts and "down" in parts
    )


def dora(source: Source, name: ModuleName, delta: Tensor, magnitude: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """Return the dense delta of a DoRA module, which needs the base; see `dora_delta`."""
    base = _base_value(source, weight_of(name), "a DoRA, which scales the base's own weight")
    outputs, inputs = base.shape[:2]
    allowed = [(outputs, *(1 for _ in base.shape[1:])), (1, inputs, *(1 for _ in base.shape[2:]))]
    if delta.shape != base.shape or tuple(magnitude.shape) not in allowed:
        raise AdapterError(
            f"{source.path}: {name}: the delta {tuple(delta.shape)} and dora_scale {tuple(magnitude.shape)} do not fit "
            f"the base's weight {tuple(base.shape)}."
        )
    return dora_delta(base, delta, magnitude, epsilon=epsilon)


def _base_value(source: Source, name: ParamName, what: str) -> Tensor:
    if source.base is None:
        raise AdapterError(
            f"{source.path}: {name} is {what}: its delta depends on the base. `lbm-lora convert` reads it with the "
            "base: ",
            Option("base_model_path", "BASE"),
            ".",
        )
    if name not in source.base:
        raise AdapterError(f"{source.path}: {name} is not in the base {source.base.path}.")
    return source.base.read(name)


@dataclass(frozen=True)
class _Reader:
    source: Source
    is_turned_around: bool

    def module(self, name: ModuleName, parts: Mapping[str, Tensor]) -> tuple[LoraModule | Tensor, str]:
        if any(role.startswith("hada_") for role in parts):
            delta, kind = self._product(name, parts, loha, ("hada_w1_b", "hada_w2_b")), "LoHa"
        elif any(role.startswith("lokr_") for role in parts):
            delta, kind = self._product(name, parts, lokr, ("lokr_w2_b", "lokr_w1_b")), "LoKr"
        else:
            delta, kind = self._lora(name, parts), "Tucker factors" if "mid" in parts else ""
        if "dora_scale" in parts:
            low_rank = delta.delta() if isinstance(delta, LoraModule) else delta
            return dora(self.source, name, low_rank, parts["dora_scale"], epsilon=_EPSILON), "DoRA"
        return delta, kind

    def _lora(self, name: ModuleName, parts: Mapping[str, Tensor]) -> LoraModule:
        missing = [role for role in ("up", "down") if role not in parts]
        if missing:
            raise self._error(name, f" has no {missing[0]} factor. The file is incomplete.")
        up, down, mid = parts["up"], parts["down"], parts.get("mid")
        if self.is_turned_around and up.dim() == 4 and down.dim() in (2, 4):
            up, down = down, up
        if not _fits(up, down, mid):
            raise self._error(
                name,
                f": up {tuple(up.shape)} and down {tuple(down.shape)} do not fit together: "
                "the second size of up and the first of down must be the rank.",
            )
        inner = down.shape[0]
        alpha = self._alpha(name, parts, inner)
        if mid is not None:
            alpha *= up.shape[1] / inner
            down = self._rebuilt(name, parts, lambda parts: with_mid(parts["mid"], down))
        shape = self._shape(name, (up.shape[0], *down.shape[1:]))
        up = up.reshape(*up.shape[:2], *(1 for _ in shape[2:]))
        return LoraModule(name, down.reshape(down.shape[0], *shape[1:]), up, alpha)

    def _product(
        self,
        name: ModuleName,
        parts: Mapping[str, Tensor],
        rebuild: Callable[[Mapping[str, Tensor]], Factors | Tensor],
        ranked: tuple[str, str],
    ) -> LoraModule | Tensor:
        """Return the delta of LoHa or LoKr. Alpha counts by the rank of its parts; without factors there is none."""
        found = self._rebuilt(name, parts, rebuild)
        rank = next((parts[role].shape[0] for role in ranked if role in parts), 0)
        scaling = self._alpha(name, parts, rank) / rank if rank else 1.0
        if isinstance(found, Tensor):
            return (scaling * found).reshape(self._unflattened(name, *found.shape))
        shape = self._unflattened(name, found.up.shape[0], found.down.shape[1])
        up = found.up.reshape(*found.up.shape, *(1 for _ in shape[2:]))
        return LoraModule(name, found.down.reshape(found.rank, *shape[1:]), up, scaling * found.rank)

    def _rebuilt(
        self, name: ModuleName, parts: Mapping[str, Tensor], rebuild: Callable[[Mapping[str, Tensor]], _Rebuilt]
    ) -> _Rebuilt:
        try:
            return rebuild(parts)
        except InputError as error:
            shapes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in parts.items())
            raise self._error(name, f": {shapes} ", *error.args) from None

    def _alpha(self, name: ModuleName, parts: Mapping[str, Tensor], rank: int) -> float:
        return alpha_in(parts["alpha"], name, self.source.path) if "alpha" in parts else float(rank)

    def _shape(self, name: ModuleName, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a weight in the denoiser, which may be that of a file without its 1x1 kernel."""
        base = self._shape_in_base(name, shape)
        if base is not None:
            return base
        is_ours = EXPORT_KEY in self.source.header
        return shape[:2] if not is_ours and shape[2:] == (1, 1) and kernel_of(name) == () else shape

    def _unflattened(self, name: ModuleName, rows: int, columns: int) -> tuple[int, ...]:
        base = self._shape_in_base(name, (rows, columns))
        if base is not None:
            return base
        kernel = kernel_of(name)
        if columns % math.prod(kernel):
            raise self._error(
                name,
                f": a delta of {rows} x {columns} does not fit the module's kernel of "
                f"{' x '.join(map(str, kernel))}. The file is damaged, or for another model.",
            )
        return (rows, columns // math.prod(kernel), *kernel)

    def _shape_in_base(self, name: ModuleName, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape of the base's weight, if it differs at most in how far its second side is flattened."""
        if self.source.base is None or weight_of(name) not in self.source.base:
            return None
        base = self.source.base.specs[weight_of(name)].shape
        is_alike = base == shape or len(base) != len(shape)
        is_same = is_alike and len(base) > 1 and base[0] == shape[0] and math.prod(base) == math.prod(shape)
        return base if is_same else None

    def _error(self, name: str, *parts: str | Option) -> AdapterError:
        return AdapterError(f"{self.source.path}: {name}", *parts)


def _fits(up: Tensor, down: Tensor, mid: Tensor | None) -> bool:
    """Return whether factors share a rank, and only the last one has a kernel."""
    if up.dim() not in (2, 4) or down.dim() not in (2, 4) or not (up.numel() and down.numel()):
        return False
    if mid is None:
        return up[0, 0].numel() == 1 and up.shape[1] == down.shape[0]
    is_between = mid.numel() and mid.shape[:2] == (up.shape[1], down.shape[0])
    return up[0, 0].numel() == 1 and bool(is_between) and down[0, 0].numel() == 1
