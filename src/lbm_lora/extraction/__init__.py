"""Extract adapters from two checkpoints: a plan, and passes that execute it."""

from lbm_lora.extraction.adapter_output import AdapterOutput, sidecar_of, write_sidecar
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.extraction import ExtractedAdapter, extract_adapters
from lbm_lora.extraction.passes import DirectPass, SurveyedPass
from lbm_lora.extraction.plan import COVERAGES, Action, Plan, plan_extraction
from lbm_lora.extraction.shrinkage import Shrinkage
from lbm_lora.extraction.survey import SurveyPass
