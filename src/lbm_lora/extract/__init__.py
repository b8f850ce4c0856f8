"""Two checkpoints -> adapter (layer L3): a plan that can be printed and tested, and one pass that carries it out."""

from lbm_lora.extract.plan import COVERAGES, Action, Plan, PlanItem, plan_extraction
from lbm_lora.extract.run import Extraction, Outcome, Settings, seed_of

__all__ = [
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
