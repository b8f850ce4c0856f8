"""Result of the command that says what a file is: inspect."""

from lbm_lora.cli.spelling import as_flag
from lbm_lora.report.inspection import Inspection, screen
from lbm_lora.verbs.lines import file_lines, paragraphs


def inspect(result: Inspection, _: bool) -> str:
    """Return one screen, and the written page."""
    return paragraphs(screen(result, as_flag), file_lines(*result.written))
