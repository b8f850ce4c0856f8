"""Choose the ranks of an adapter: from the spectra of its deltas, by one rule, with or without a trial."""

from lbm_lora.ranks.allocate import Allocator, Choice, RankAllocator, WidthAllocator, needs_limit
from lbm_lora.ranks.rules import (
    LEAST_CAP,
    SMALL_SIDE,
    ErrorLimit,
    FixedRanks,
    PsnrFloor,
    RankOptions,
    RankRule,
    SizeLimits,
    parse_nbytes,
    rank_rule,
)
from lbm_lora.ranks.spectrum import (
    DeltaSpectrum,
    WeightsOf,
    WidthSpectrum,
    dense_error,
    rounding_error,
    unweighted,
    vector_spectrum,
    width_spectrum,
)
from lbm_lora.ranks.trials import (
    SHIFTS,
    Chooser,
    ChosenRanks,
    OutputNorm,
    Prediction,
    Predictor,
    Trial,
    TrialErrors,
    TrialImages,
    predictor_of,
)
