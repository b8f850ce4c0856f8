"""Extract adapters from two checkpoints (layer L3): a plan that can be printed and tested, and passes that execute it.

- `plan`: what to do with each tensor, decided from names and shapes alone
- `deltas`: one tensor, read and subtracted
- `survey`: the first pass of two, every delta decomposed once; `lbm_lora.ranks` chooses from it
- `passes`: every tensor's outcome, decomposed directly or truncated from a survey
- `selection`: a surveyed plan, from which ranks are chosen and adapters written
- `shrinkage`: statistics shrunk until a LoRA is not worse than plain SVD
- `adapter_output`: the adapters as files, or in memory
- `extraction`: all of the above in one call
"""

from lbm_lora.extraction.adapter_output import AdapterOutput, is_sidecar, sidecar_of, write_sidecar
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.extraction import ExtractedAdapter, extract_adapters
from lbm_lora.extraction.passes import DirectPass, SurveyedPass
from lbm_lora.extraction.plan import COVERAGES, Action, Plan, PlanItem, plan_extraction
from lbm_lora.extraction.shrinkage import Shrinkage
from lbm_lora.extraction.survey import SurveyPass
