"""Approximate the matrices of an adapter that exceed a rank: LoHa, LoKr and dense matrices have large exact forms."""

from dataclasses import dataclass, replace
from zlib import crc32

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
        module, shape = adapter.module_at(name), tuple(delta.shape)
        is_dense_matrix = leaf_of(name) == "weight" and has_matrix_view(shape)
        if not (is_dense_matrix if module is None else module.rank > rank):
            sums += Measure(delta_sq=squared)
            continue
        dtype = adapter.dtype or (adapter.dense[name] if module is None else module.up).dtype
        factors = factorize(to_matrix(delta), rank, dtype, seed=crc32(name.encode()))
        kept = factors.rank
        modules[module_of(name)] = LoraModule(
            module_of(name),
            factors.down.reshape(down_shape(shape, kept)),
            factors.up.reshape(up_shape(shape, kept)),
            alpha=float(kept),
        )
        dense.pop(name, None)
        sums += with_error(Measure(delta_sq=squared), delta, factors)
        reduced.append(name)
    metadata = adapter.metadata.without_errors() if reduced else adapter.metadata
    made = replace(adapter.holding(modules, dense, adapter.dtype), metadata=metadata)
    return Limited(made, tuple(reduced), sums.relative_error)
