"""What a file is, and how two differ: measured as values, shown as one screen of text or one page."""

from lbm_lora.report.inspection.adapter_values import AdapterFacts
from lbm_lora.report.inspection.adapters import adapter_facts
from lbm_lora.report.inspection.checkpoints import checkpoint_facts, denoiser_of
from lbm_lora.report.inspection.differences import adapter_difference, checkpoint_difference, fit_of
from lbm_lora.report.inspection.files import file_facts, read_as_lora
from lbm_lora.report.inspection.known import KNOWN
from lbm_lora.report.inspection.page import PAGE, write_page
from lbm_lora.report.inspection.relations import Difference, Fit, Inspection
from lbm_lora.report.inspection.text import screen
from lbm_lora.report.inspection.values import CheckpointFacts, FileFacts

__all__ = [
    "KNOWN",
    "PAGE",
    "AdapterFacts",
    "CheckpointFacts",
    "Difference",
    "FileFacts",
    "Fit",
    "Inspection",
    "adapter_difference",
    "adapter_facts",
    "checkpoint_difference",
    "checkpoint_facts",
    "denoiser_of",
    "file_facts",
    "fit_of",
    "read_as_lora",
    "screen",
    "write_page",
]
