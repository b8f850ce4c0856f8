"""Extract adapters from two checkpoints (layer L3): a plan that can be printed and tested, and passes that execute it.

- `plan`: what to do with each tensor, decided from names and shapes alone
- `deltas`: one tensor, read and subtracted
- `survey`: the first pass of two, every delta decomposed once
- `allocate`: ranks for all layers together, by the one of the `rules` that `rank_options` select
- `prediction`: the expected error of a choice of ranks
- `trials`: choices that are run before they are written; `search` finds the smallest that meets a limit
- `passes`: every tensor's outcome, decomposed directly or truncated from a survey
- `adapter_output`: the adapters as files, or in memory
- `extraction`: all of the above in one call
"""

from lbm_lora.extraction.adapter_output import AdapterOutput, StoredAdapter, store_adapters, write_sidecar
from lbm_lora.extraction.allocate import Choice, RankAllocator
from lbm_lora.extraction.deltas import DeltaSettings, Outcome
from lbm_lora.extraction.extraction import ExtractedAdapter, OutputNorm, RankSelection, extract_adapters, surveyed
from lbm_lora.extraction.passes import DirectPass, Pass, SurveyedPass
from lbm_lora.extraction.plan import COVERAGES, Action, Plan, PlanItem, plan_extraction
from lbm_lora.extraction.prediction import Prediction, Predictor
from lbm_lora.extraction.rank_options import rank_rule
from lbm_lora.extraction.rules import FixedRanks, RankRule
from lbm_lora.extraction.survey import DeltaSpectrum, Survey, SurveyPass, WeightsOf, seed_of, unweighted
from lbm_lora.extraction.trials import ChosenRanks, Trial, TrialImages

__all__ = [
    "COVERAGES",
    "Action",
    "AdapterOutput",
    "Choice",
    "ChosenRanks",
    "DeltaSettings",
    "DeltaSpectrum",
    "DirectPass",
    "ExtractedAdapter",
    "FixedRanks",
    "TrialImages",
    "Outcome",
    "OutputNorm",
    "Pass",
    "Plan",
    "PlanItem",
    "Prediction",
    "Predictor",
    "RankAllocator",
    "RankRule",
    "RankSelection",
    "StoredAdapter",
    "Survey",
    "SurveyPass",
    "SurveyedPass",
    "Trial",
    "WeightsOf",
    "extract_adapters",
    "plan_extraction",
    "rank_rule",
    "seed_of",
    "store_adapters",
    "surveyed",
    "unweighted",
    "write_sidecar",
]
