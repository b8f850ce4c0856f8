"""An adapter as layers of PEFT and of diffusers: what their keys can hold, and what to say about the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.adapter.formats.one_rank import OneRank, to_one_rank
from lbm_lora.adapter.module import Adapter
from lbm_lora.errors import plural
from lbm_lora.factorize import has_matrix_view
from lbm_lora.naming import ModuleName, ParamName, bias_of, leaf_of, module_of


@dataclass(frozen=True)
class DenseKinds:
    """Dense deltas by kind.

    Attributes:
        matrices: of weights that could have factors, by module.
        biases: of layers, not of norms.
        norms: weights and biases of norms.
        others: none of these.
    """

    matrices: Mapping[ModuleName, Tensor]
    biases: Mapping[ParamName, Tensor]
    norms: Mapping[ParamName, Tensor]
    others: Mapping[ParamName, Tensor]


def dense_kinds(dense: Mapping[ParamName, Tensor]) -> DenseKinds:
    """Sort dense deltas by their names and shapes."""
    norms = {name: delta for name, delta in dense.items() if is_norm(name)}
    biases = {name: delta for name, delta in dense.items() if leaf_of(name) == "bias" and name not in norms}
    matrices = {
        module_of(name): delta
        for name, delta in dense.items()
        if leaf_of(name) == "weight" and has_matrix_view(tuple(delta.shape)) and name not in norms
    }
    others = {
        name: delta
        for name, delta in dense.items()
        if name not in norms and name not in biases and module_of(name) not in matrices
    }
    return DenseKinds(matrices, biases, norms, others)


def layers_of(adapter: Adapter, kinds: DenseKinds) -> OneRank:
    """Return the modules, and the dense matrices as modules, without a scaling and of one rank."""
    return to_one_rank(adapter.modules, kinds.matrices, adapter.prefix)


def up_biases(layers: OneRank, biases: Mapping[ParamName, Tensor]) -> dict[ModuleName, Tensor]:
    """Return a bias of `lora_B` for every module: the delta of its bias, else zeros, which its readers expect."""
    return {
        name: biases.get(bias_of(name), module.up.new_zeros(module.up.shape[0]))
        for name, module in layers.modules.items()
    }


def notes_of(adapter: Adapter, layers: OneRank) -> tuple[str, ...]:
    """Return what the user should know about padding and folding."""
    ranks = sorted({module.rank for module in layers.modules.values()})
    notes: list[str] = []
    if layers.padding:
        notes.append(f"Zeros fill every module up to rank {ranks[-1]}: {layers.padding / 1e6:,.1f} MB more.")
    if layers.padding is None:
        notes.append(
            f"The modules keep their ranks of {ranks[0]} to {ranks[-1]}, since filling them up to one would more than "
            "triple the file."
        )
    widened = [name for name, module in adapter.modules.items() if module.up.dtype != layers.modules[name].up.dtype]
    if widened:
        notes.append(f"lora_B of {plural(len(widened), 'module')} is in fp32: it holds their scaling, unrounded.")
    rounded = layers.before.alphas.count(None)
    if rounded:
        notes.append(f"The scaling of {plural(rounded, 'module')} changes the last bits of lora_B.")
    return tuple(notes)
