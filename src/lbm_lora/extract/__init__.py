"""Two checkpoints -> adapter (layer L3): a plan that can be printed and tested, and one pass that carries it out."""

from lbm_lora.extract.emission import Choices, Emission
from lbm_lora.extract.plan import COVERAGES, Action, Plan, PlanItem, plan_extraction
from lbm_lora.extract.policy import Choice, Chooser
from lbm_lora.extract.reading import Outcome, Settings
from lbm_lora.extract.run import Extraction, seed_of
from lbm_lora.extract.survey import Found, Survey, Surveyed, WeightsOf, unweighted

__all__ = [
    "Choice",
    "Chooser",
    "Surveyed",
    "unweighted",
    "WeightsOf",
    "Survey",
    "Found",
    "Emission",
    "Choices",
    "COVERAGES",
    "Action",
    "Extraction",
    "Outcome",
    "Plan",
    "PlanItem",
    "Settings",
    "plan_extraction",
    "seed_of",
]
