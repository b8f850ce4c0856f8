"""Choose the ranks of an adapter (layer L2b): from the spectra of its deltas, by one rule, with or without a trial.

Extraction finds the spectra in two checkpoints, `combine` in the factors of LoRAs; the choice is the same.

- `rank_options`: options of a command to the one of the `rules` that they select
- `spectrum`: what each rank of one delta is worth
- `allocate`: ranks for all layers together
- `prediction`: the expected error of a choice of ranks
- `trials`: choices that are run before they are written; `search` finds the smallest that meets a limit
"""

from lbm_lora.ranks.allocate import Choice, RankAllocator, megabytes
from lbm_lora.ranks.allocate_widths import WidthAllocator, needs_limit
from lbm_lora.ranks.prediction import Prediction, Predictor
from lbm_lora.ranks.rank_options import parse_nbytes, rank_rule
from lbm_lora.ranks.rules import LEAST_CAP, SMALL_SIDE, ErrorLimit, FixedRanks, PsnrFloor, RankRule, SizeLimits
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
from lbm_lora.ranks.trial_errors import SHIFTS, TrialErrors
from lbm_lora.ranks.trials import Chooser, ChosenRanks, OutputNorm, Trial, TrialImages, predictor_of

__all__ = [
    "Choice",
    "Chooser",
    "ChosenRanks",
    "DeltaSpectrum",
    "ErrorLimit",
    "FixedRanks",
    "LEAST_CAP",
    "OutputNorm",
    "Prediction",
    "Predictor",
    "PsnrFloor",
    "RankAllocator",
    "SHIFTS",
    "SMALL_SIDE",
    "RankRule",
    "SizeLimits",
    "Trial",
    "TrialErrors",
    "TrialImages",
    "WeightsOf",
    "WidthAllocator",
    "WidthSpectrum",
    "dense_error",
    "megabytes",
    "parse_nbytes",
    "needs_limit",
    "predictor_of",
    "rank_rule",
    "rounding_error",
    "unweighted",
    "vector_spectrum",
    "width_spectrum",
]
