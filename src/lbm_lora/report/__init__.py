"""What was measured, for readers: text for a screen, JSON for programs, one page for people."""

from lbm_lora.report.document import Provenance, Report, report_json
from lbm_lora.report.page import render_html
from lbm_lora.report.text import full_text, short_text
from lbm_lora.report.write import installed_versions, report_paths, write_report

__all__ = [
    "Provenance",
    "Report",
    "full_text",
    "installed_versions",
    "render_html",
    "report_json",
    "report_paths",
    "short_text",
    "write_report",
]
