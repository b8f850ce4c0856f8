"""The sizes of files, before they are written."""

import math
from collections.abc import Iterable

from lbm_lora.adapter import METADATA_ROOM, module_bytes, precision, stored_bytes
from lbm_lora.checkpoint import Checkpoint, Component
from lbm_lora.configs.values import VECTOR_DENSE_UP_TO, VECTOR_SKETCH_RANK
from lbm_lora.factorize import FixedRank, has_matrix_view
from lbm_lora.naming import ParamName, leaf_of, module_of

Delta = tuple[ParamName, tuple[int, ...], bool]
"""Name and shape of a delta, and whether it is a lora module."""


def lora_nbytes(component: Component, ranks: FixedRank, dtype: str, parts: Iterable[Delta]) -> int:
    """Return the bytes of a LoRA file.

    Args:
        parts: its deltas.
    """
    stored, prefix, nbytes = precision(dtype), component.prefix, METADATA_ROOM
    for name, shape, is_module in parts:
        if is_module:
            nbytes += module_bytes(prefix, module_of(name), shape, ranks.rank_of(shape), stored)
        else:
            nbytes += stored_bytes(prefix, name, shape, stored)
    return nbytes


def statistics_nbytes(tuned: Checkpoint, dense_up_to: int, sketch_rank: int, conv_dense_up_to: int) -> int:
    """Return at most the bytes of statistics: the moments of both sides of each matrix and of each vector, in fp16.

    Layers with the same input share its moment in the file, which names do not tell.
    """
    nbytes = 0
    for name, spec in tuned.component().specs.items():
        shape, columns = spec.shape, math.prod(spec.shape[1:])
        if leaf_of(name) == "weight" and has_matrix_view(shape):
            is_complete = columns > shape[1] and conv_dense_up_to > 0
            nbytes += _moment(shape[0], dense_up_to, sketch_rank)
            nbytes += (
                _moment(columns, conv_dense_up_to, sketch_rank)
                if is_complete
                else _moment(shape[1], dense_up_to, sketch_rank)
            )
        elif len(shape) == 1:
            nbytes += _moment(shape[0], VECTOR_DENSE_UP_TO, VECTOR_SKETCH_RANK)
    return nbytes


def _moment(side: int, dense_up_to: int, sketch_rank: int) -> int:
    """Return the bytes of one moment, with the fp32 numbers of each row."""
    return 4 * side + side * (side + 1) if side <= max(dense_up_to, sketch_rank) else 8 * side + 2 * side * sketch_rank
