"""What a file is, and how two differ: `facts` and `differences` read it as `values`, `drawing` shows it."""

from lbm_lora.report.inspection.differences import adapter_difference, checkpoint_difference, fit_of
from lbm_lora.report.inspection.drawing import PAGE, screen, write_page
from lbm_lora.report.inspection.facts import (
    KNOWN,
    adapter_facts,
    checkpoint_facts,
    denoiser_of,
    file_facts,
    read_as_lora,
)
from lbm_lora.report.inspection.values import AdapterFacts, CheckpointFacts, Difference, FileFacts, Fit, Inspection

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
