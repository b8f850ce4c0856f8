"""Read a foreign file completely: every key becomes part of a lora module or a dense delta, or is an error.

What is rebuilt, all of it exactly:

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lbm_lora.adapter.formats.codec import Parts, Source
from lbm_lora.adapter.formats.dora import dora_delta, dora_note
from lbm_lora.adapter.formats.grouping import Grouped, grouped
from lbm_lora.adapter.formats.names import kernel_of
from lbm_lora.adapter.formats.rebuild import loha, lokr, with_mid
from lbm_lora.adapter.metadata import EXPORT_KEY
from lbm_lora.adapter.module import LoraModule
from lbm_lora.adapter.native import alpha_in
from lbm_lora.checkpoint import Component
from lbm_lora.errors import AdapterError, InputError, Option, listing, plural
from lbm_lora.factorize import Factors
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, weight_of

_Rebuilt = TypeVar("_Rebuilt")

_EPSILON = torch.finfo(torch.float32).eps  # added to the norm by LyCORIS


def read(source: Source, named: Callable[[str], ModuleName | None]) -> Parts:
    """Return the contents of a file.

    Args:
        named: maps the part of a key before its ending to a module; None if it matches none.
    """
    found = grouped(source.tensors, named, source.path)
    if len(found.left_out) == len(source.tensors):
        raise AdapterError(
            f"{source.path} holds a LoRA of text encoders alone: {listing(found.left_out, limit=3)}. "
            "An LBM has none, so there is nothing in it for one."
        )
    reader = _Reader(source, _is_turned_around(found))
    modules: dict[ModuleName, LoraModule] = {}
    dense = dict(found.deltas)
    rebuilt: dict[str, int] = {}
    for name, parts in found.factors.items():
        module, kind = reader.module(name, parts)
        if kind:
            rebuilt[kind] = rebuilt.get(kind, 0) + 1
        if isinstance(module, LoraModule):
            modules[name] = module
        else:
            _add(dense, weight_of(name), module, source)
    for name, value in found.values.items():
        _add(dense, name, reader.replaced(name, value), source)
    for name in dense.keys() & {weight_of(name) for name in modules}:
        raise AdapterError(f"{source.path}: {name} has both factors and a dense delta. Remove one of them.")
    notes = _notes(rebuilt, dense)
    if found.left_out:
        notes.append(
            f"{plural(len(found.left_out), 'key')} left out, of parts that an LBM lacks (text encoders, embeddings of "
            f"text and size): {listing(found.left_out, limit=3)}."
        )
    return Parts(modules, dense, DENOISER_PREFIX, tuple(notes))


def _notes(rebuilt: Mapping[str, int], dense: Mapping[ParamName, Tensor]) -> list[str]:
    """Return what was rebuilt."""
    exact = [f"{plural(count, 'module')} of {kind}" for kind, count in rebuilt.items() if kind != "DoRA"]
    notes = [f"{' and '.join(exact)}: rebuilt exactly, as factors or as dense deltas."] if exact else []
    if "DoRA" in rebuilt:
        nbytes = sum(delta.nbytes for delta in dense.values())
        notes.append(f"{dora_note(rebuilt['DoRA'], nbytes)} `lbm-lora resize` makes factors of them.")
    return notes


def _add(dense: dict[ParamName, Tensor], name: ParamName, delta: Tensor, source: Source) -> None:
    if name in dense:
        raise AdapterError(f"{source.path}: {name} has two deltas. Remove one of them.")
    dense[name] = delta


def _is_turned_around(found: Grouped) -> bool:
    return any(
        parts["up"].dim() == 4 and parts["up"].shape[2:].numel() > 1 and parts["down"].shape[2:].numel() == 1
        for parts in found.factors.values()
        if "up" in parts and "down" in parts
    )


@dataclass(frozen=True)
class _Reader:
    source: Source
    is_turned_around: bool

    def module(self, name: ModuleName, parts: Mapping[str, Tensor]) -> tuple[LoraModule | Tensor, str]:
        """Return a module's delta, and the kind that it was rebuilt from."""
        if any(role.startswith("hada_") for role in parts):
            delta, kind = self._product(name, parts, loha, ("hada_w1_b", "hada_w2_b")), "LoHa"
        elif any(role.startswith("lokr_") for role in parts):
            delta, kind = self._product(name, parts, lokr, ("lokr_w2_b", "lokr_w1_b")), "LoKr"
        else:
            delta, kind = self._lora(name, parts), "Tucker factors" if "mid" in parts else ""
        if "dora_scale" in parts:
            return self._dora(name, delta, parts["dora_scale"]), "DoRA"
        return delta, kind

    def replaced(self, name: ParamName, value: Tensor) -> Tensor:
        """Return the delta to a value that replaces the base's."""
        return value.float() - self._base(name, "a value that replaces the base's").float()

    def _lora(self, name: ModuleName, parts: Mapping[str, Tensor]) -> LoraModule:
        missing = [role for role in ("up", "down") if role not in parts]
        if missing:
            raise AdapterError(f"{self.source.path}: {name} has no {missing[0]} factor. The file is incomplete.")
        up, down = parts["up"], parts["down"]
        if up.dim() not in (2, 4) or down.dim() not in (2, 4):
            raise self._misfit(name, up, down)
        if self.is_turned_around and up.dim() == 4:
            up, down = down, up
        inner, mid = down.shape[0], parts.get("mid")
        fits = up.numel() and down.numel() and up[0, 0].numel() == 1
        if mid is None:
            fits = fits and up.shape[1] == inner
        else:
            fits = fits and mid.numel() and mid.shape[:2] == (up.shape[1], inner) and down[0, 0].numel() == 1
        if not fits:
            raise self._misfit(name, up, down)
        alpha = self._alpha(name, parts, inner)
        if mid is not None:
            alpha *= up.shape[1] / inner
            down = self._rebuilt(name, parts, lambda parts: with_mid(parts["mid"], down))
        shape = self._shape(name, (up.shape[0], *down.shape[1:]))
        up = up.reshape(*up.shape[:2], *(1 for _ in shape[2:]))
        return LoraModule(name, down.reshape(down.shape[0], *shape[1:]), up, alpha)

    def _misfit(self, name: ModuleName, up: Tensor, down: Tensor) -> AdapterError:
        return AdapterError(
            f"{self.source.path}: {name}: up {tuple(up.shape)} and down {tuple(down.shape)} do not fit together: "
            "the second size of up and the first of down must be the rank."
        )

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
            raise AdapterError(f"{self.source.path}: {name}: {shapes} ", *error.args) from None

    def _dora(self, name: ModuleName, delta: LoraModule | Tensor, magnitude: Tensor) -> Tensor:
        base = self._base(weight_of(name), "a DoRA, which scales the base's own weight")
        outputs, inputs = base.shape[:2]
        allowed = [(outputs, *(1 for _ in base.shape[1:])), (1, inputs, *(1 for _ in base.shape[2:]))]
        if tuple(delta.shape) != tuple(base.shape) or tuple(magnitude.shape) not in allowed:
            raise AdapterError(
                f"{self.source.path}: {name}: the delta {tuple(delta.shape)} and dora_scale "
                f"{tuple(magnitude.shape)} do not fit the base's weight {tuple(base.shape)}."
            )
        low_rank = delta.delta() if isinstance(delta, LoraModule) else delta
        return dora_delta(base, low_rank, magnitude, epsilon=_EPSILON)

    def _base(self, name: ParamName, what: str) -> Tensor:
        base = self.source.base
        if base is None:
            raise AdapterError(
                f"{self.source.path}: {name} is {what}: its delta depends on the base. `lbm-lora "
                "convert` reads it with the base: ",
                Option("base_model_path", "BASE"),
                ".",
            )
        if name not in base:
            raise AdapterError(f"{self.source.path}: {name} is not in the base {base.path}.")
        return base.read(name)

    def _alpha(self, name: ModuleName, parts: Mapping[str, Tensor], rank: int) -> float:
        return alpha_in(parts["alpha"], name, self.source.path) if "alpha" in parts else float(rank)

    def _shape(self, name: ModuleName, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a weight in the denoiser, which may be that of a file without its 1x1 kernel."""
        base = _shape_in(self.source.base, name)
        if base is not None and _is_same_matrix(base, shape):
            return base
        is_ours = EXPORT_KEY in self.source.header
        return shape[:2] if not is_ours and shape[2:] == (1, 1) and kernel_of(name) == () else shape

    def _unflattened(self, name: ModuleName, rows: int, columns: int) -> tuple[int, ...]:
        """Return the shape of the weight that a flattened delta belongs to."""
        base = _shape_in(self.source.base, name)
        if base is not None and _is_same_matrix(base, (rows, columns)):
            return base
        kernel = kernel_of(name)
        if columns % math.prod(kernel):
            raise AdapterError(
                f"{self.source.path}: {name}: a delta of {rows} x {columns} does not fit the module's kernel of "
                f"{' x '.join(map(str, kernel))}. The file is damaged, or for another model."
            )
        return (rows, columns // math.prod(kernel), *kernel)


def _is_same_matrix(base: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether two shapes differ at most in how far their second side is flattened."""
    is_alike = base == shape or len(base) != len(shape)
    return is_alike and len(base) > 1 and base[0] == shape[0] and math.prod(base) == math.prod(shape)


def _shape_in(base: Component | None, name: ModuleName) -> tuple[int, ...] | None:
    return base.specs[weight_of(name)].shape if base is not None and weight_of(name) in base else None
