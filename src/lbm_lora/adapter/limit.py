"""Approximate the matrices of an adapter that exceed a rank: LoHa, LoKr and dense matrices have large exact forms."""

from dataclasses import dataclass
from zlib import crc32

import torch

from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.blocks import energy
from lbm_lora.factorize import Measure, down_shape, factorize, has_matrix_view, to_matrix, up_shape, with_error
from lbm_lora.naming import ParamName, leaf_of, module_of


@dataclass(frozen=True)
class Limited:
    """An adapter without matrices above a rank.

    Attributes:
        reduced: param names of the matrices that were approximated.
        relative_error: of all deltas together, after rounding to their dtype.
    """

    adapter: Adapter
    reduced: tuple[ParamName, ...]
    relative_error: float


def limited(adapter: Adapter, rank: int) -> Limited:
    """Replace each matrix of a higher rank, dense ones included, by its best approximation of this rank.

    Approximations have the dtype of what they replace; those of dense matrices too. Other deltas stay as they are.

    Args:
        rank: 1 or more.
    """
    adapter = adapter.unpacked()
    modules, dense = dict(adapter.modules), dict(adapter.dense)
    sums, reduced = Measure(), list[ParamName]()
    for name in adapter.params:
        delta = adapter.delta(name)
        assert delta is not None
        squared = energy(delta)
        if not _exceeds(adapter, name, rank):
            sums += Measure(delta_sq=squared)
            continue
        dtype = _dtype_of(adapter, name)
        factors = factorize(to_matrix(delta), rank, dtype, seed=crc32(name.encode()))
        shape, kept = tuple(delta.shape), factors.rank
        module = module_of(name)
        modules[module] = LoraModule(
            module,
            factors.down.reshape(down_shape(shape, kept)),
            factors.up.reshape(up_shape(shape, kept)),
            alpha=float(kept),
        )
        dense.pop(name, None)
        sums += with_error(Measure(delta_sq=squared), delta, factors)
        reduced.append(name)
    metadata = adapter.metadata.without_errors() if reduced else adapter.metadata
    made = Adapter(modules, dense, metadata, adapter.prefix, adapter.path, adapter.dtype, adapter.file_format)
    return Limited(made, tuple(reduced), sums.relative_error)


def _exceeds(adapter: Adapter, name: ParamName, rank: int) -> bool:
    """Return whether the parameter's delta is a matrix that is stored at a higher rank."""
    module = adapter.module_at(name)
    if module is not None:
        return module.rank > rank
    shape = tuple(adapter.dense[name].shape)
    return leaf_of(name) == "weight" and has_matrix_view(shape)


def _dtype_of(adapter: Adapter, name: ParamName) -> torch.dtype:
    """Return the dtype for the factors of a parameter: that of its values in a file."""
    module = adapter.module_at(name)
    return adapter.dtype or (adapter.dense[name] if module is None else module.up).dtype
