"""Tensor maths for low-rank deltas, without names or files."""

from lbm_lora.factorize.budget import (
    Allocation,
    Spectrum,
    WidthAllocation,
    WidthCosts,
    allocate_error,
    allocate_widths,
    allocate_widths_for,
    curve,
    energy_rank,
    error_rank,
)
from lbm_lora.factorize.factors import (
    EightBit,
    Factors,
    concatenated,
    dense_dtype,
    exact_factors,
    factorize,
    factorize_ranks,
    grid_noise,
    product_svd,
    quantize,
    rounded,
    shortened,
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
from lbm_lora.factorize.measure import Measure, measure_delta, rank_above, rounding_edge, with_error
from lbm_lora.factorize.moments import Moment, MomentAccumulator
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
