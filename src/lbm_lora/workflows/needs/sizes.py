"""The sizes of files, before they are written."""

import math
from collections.abc import Iterable, Iterator

import torch

from lbm_lora.adapter import METADATA_ROOM, module_bytes, stored_bytes
from lbm_lora.checkpoint import Checkpoint, Component
from lbm_lora.configs.values import VECTOR_DENSE_UP_TO, VECTOR_SKETCH_RANK
from lbm_lora.factorize import FixedRank, has_matrix_view
from lbm_lora.naming import ParamName, leaf_of, module_of

Delta = tuple[ParamName, tuple[int, ...], bool]
"""Name and shape of a delta, and whether it is a lora module."""


def lora_nbytes(component: Component, ranks: FixedRank, dtype: torch.dtype, parts: Iterable[Delta]) -> int:
    """Return the bytes of a LoRA file.

    Args:
        parts: its deltas.
    """
    prefix, nbytes = component.prefix, METADATA_ROOM
    for name, shape, is_module in parts:
        if is_module:
            nbytes += module_bytes(prefix, module_of(name), shape, ranks.rank_of(shape), dtype)
        else:
            nbytes += stored_bytes(prefix, name, shape, dtype)
    return nbytes


def statistics_nbytes(tuned: Checkpoint, dense_up_to: int, sketch_rank: int, conv_dense_up_to: int) -> int:
    """Return at most the bytes of statistics: the moments of both sides of each matrix and of each vector, in fp16.

    Layers with the same input share its moment in the file, which names do not tell.
    """
    return sum(_moment(*one) for one in _sides(tuned, dense_up_to, sketch_rank, conv_dense_up_to))


def sums_nbytes(tuned: Checkpoint, dense_up_to: int, sketch_rank: int, conv_dense_up_to: int) -> int:
    """Return at most the bytes of the unfinished sums of statistics: the same moments, complete and in fp32."""
    return sum(_sum(*one) for one in _sides(tuned, dense_up_to, sketch_rank, conv_dense_up_to))


def _sides(
    tuned: Checkpoint, dense_up_to: int, sketch_rank: int, conv_dense_up_to: int
) -> Iterator[tuple[int, int, int]]:
    """Yield the width of each moment, with the width up to which it is dense and the rank of a sketch."""
    for name, spec in tuned.component().specs.items():
        shape, columns = spec.shape, math.prod(spec.shape[1:])
        if leaf_of(name) == "weight" and has_matrix_view(shape):
            is_complete = columns > shape[1] and conv_dense_up_to > 0
            yield shape[0], dense_up_to, sketch_rank
            yield (columns, conv_dense_up_to, sketch_rank) if is_complete else (shape[1], dense_up_to, sketch_rank)
        elif len(shape) == 1:
            yield shape[0], VECTOR_DENSE_UP_TO, VECTOR_SKETCH_RANK


def _moment(side: int, dense_up_to: int, sketch_rank: int) -> int:
    """Return the bytes of one moment, with the fp32 numbers of each row."""
    return 4 * side + side * (side + 1) if side <= max(dense_up_to, sketch_rank) else 8 * side + 2 * side * sketch_rank


def _sum(side: int, dense_up_to: int, sketch_rank: int) -> int:
    """Return the bytes of the sum behind one moment."""
    return 4 * side * side if side <= max(dense_up_to, sketch_rank) else 4 * side * (1 + sketch_rank)
