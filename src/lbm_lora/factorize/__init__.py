"""Tensor maths for low-rank deltas, without names or files (layer L1)."""

from lbm_lora.factorize.budget import (
    Allocation,
    Spectrum,
    allocate,
    allocate_error,
    curve,
    energy_rank,
    error_rank,
)
from lbm_lora.factorize.eight_bit import EightBit, grid_noise, quantize
from lbm_lora.factorize.factors import (
    Factors,
    dense_dtype,
    factorize,
    factorize_ranks,
    factors_of,
    rounded,
    stored_factors,
)
from lbm_lora.factorize.matrix import (
    down_shape,
    from_matrix,
    has_matrix_view,
    matrix_shape,
    rank_bound,
    to_matrix,
    up_shape,
)
from lbm_lora.factorize.measure import Measure, measure_delta, with_error
from lbm_lora.factorize.moments import Moment, MomentAccumulator
from lbm_lora.factorize.noise import noise_edge, rank_above, rounding_edge
from lbm_lora.factorize.products import concatenated, exact_factors, product_svd, weighted_product_svd
from lbm_lora.factorize.rank import FULL_RANK, FixedRank
from lbm_lora.factorize.roots import Root
from lbm_lora.factorize.svd import TruncatedSVD, exact_svd, truncated_svd
from lbm_lora.factorize.weighted import (
    RIDGE,
    WeightedSVD,
    Weights,
    Whitening,
    output_error,
    weighted_factors,
    weighted_svd,
)

__all__ = [
    "Allocation",
    "EightBit",
    "FULL_RANK",
    "Factors",
    "FixedRank",
    "Measure",
    "Moment",
    "MomentAccumulator",
    "RIDGE",
    "Root",
    "Spectrum",
    "TruncatedSVD",
    "WeightedSVD",
    "Weights",
    "Whitening",
    "allocate",
    "allocate_error",
    "concatenated",
    "curve",
    "dense_dtype",
    "down_shape",
    "energy_rank",
    "error_rank",
    "exact_factors",
    "exact_svd",
    "factorize",
    "factorize_ranks",
    "factors_of",
    "from_matrix",
    "grid_noise",
    "has_matrix_view",
    "matrix_shape",
    "measure_delta",
    "noise_edge",
    "output_error",
    "product_svd",
    "quantize",
    "rank_above",
    "rank_bound",
    "rounded",
    "rounding_edge",
    "stored_factors",
    "to_matrix",
    "truncated_svd",
    "up_shape",
    "weighted_factors",
    "weighted_product_svd",
    "weighted_svd",
    "with_error",
]
