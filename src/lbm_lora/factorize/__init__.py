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
from lbm_lora.factorize.eight_bit import EightBit, grid_noise, quantize, shortened
from lbm_lora.factorize.factors import (
    Factors,
    concatenated,
    dense_dtype,
    exact_factors,
    factorize,
    factorize_ranks,
    factors_of,
    product_svd,
    rounded,
    stored_factors,
)
from lbm_lora.factorize.grid import (
    PACKED,
    WIDTHS,
    Counts,
    Grid,
    counts_of,
    largest,
    nearest,
    relative_noise,
    vector_counts,
    vector_of,
)
from lbm_lora.factorize.matrix import (
    FULL_RANK,
    FixedRank,
    down_shape,
    has_matrix_view,
    matrix_shape,
    rank_bound,
    to_matrix,
    up_shape,
)
from lbm_lora.factorize.measure import Measure, measure_delta, with_error
from lbm_lora.factorize.moments import Moment, MomentAccumulator
from lbm_lora.factorize.noise import rank_above, rounding_edge
from lbm_lora.factorize.roots import Root, TriangularRoot
from lbm_lora.factorize.svd import TruncatedSVD, exact_svd, truncated_svd
from lbm_lora.factorize.weighted import (
    RIDGE,
    WeightedSVD,
    Weights,
    Whitening,
    packed_factors,
    weighted_factors,
    weighted_product_svd,
    weighted_svd,
)
from lbm_lora.factorize.width_budget import WidthAllocation, WidthCosts, allocate_widths, allocate_widths_for
