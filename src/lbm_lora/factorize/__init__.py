"""Pure tensor maths of low-rank deltas: no names, no files (layer L1)."""

from lbm_lora.factorize.factors import Factors, factorize, factorize_ranks, factors_of, rounded
from lbm_lora.factorize.matrix import (
    down_shape,
    from_matrix,
    has_matrix_view,
    matrix_shape,
    rank_bound,
    to_matrix,
    up_shape,
)
from lbm_lora.factorize.measure import Measure, measure, measure_delta, storage_noise, with_error
from lbm_lora.factorize.moments import DENSE_UP_TO, SKETCH_RANK, Moment, MomentAccumulator
from lbm_lora.factorize.rank import FULL_RANK, FixedRank
from lbm_lora.factorize.roots import Root
from lbm_lora.factorize.svd import TruncatedSVD, exact_svd, truncated_svd

__all__ = [
    "DENSE_UP_TO",
    "FULL_RANK",
    "Factors",
    "FixedRank",
    "Measure",
    "Moment",
    "MomentAccumulator",
    "Root",
    "SKETCH_RANK",
    "TruncatedSVD",
    "down_shape",
    "exact_svd",
    "factorize",
    "factorize_ranks",
    "factors_of",
    "from_matrix",
    "has_matrix_view",
    "matrix_shape",
    "measure",
    "measure_delta",
    "rank_bound",
    "rounded",
    "storage_noise",
    "to_matrix",
    "truncated_svd",
    "up_shape",
    "with_error",
]
