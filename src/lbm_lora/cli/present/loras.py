"""Results of the commands that measure and improve LoRAs: validate, resize."""

from typing import TYPE_CHECKING

from lbm_lora.report import full_text
from lbm_lora.verbs.lines import file_lines, layer_lines, paragraphs

if TYPE_CHECKING:
    from lbm_lora.workflows.validate import ValidateResult


def validate(result: "ValidateResult", verbose: bool) -> str:
    """Return the complete report."""
    return paragraphs(
        layer_lines(result.report.weights, verbose),
        full_text(result.report),
        file_lines(*result.files, result.layer_names),
    )
