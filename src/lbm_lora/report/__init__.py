"""What was measured, for readers: text for a screen, JSON for programs, one page for people (layer L5)."""

from lbm_lora.report.document import SCHEMA, Provenance, Report, parse_report, report_json, report_schema
from lbm_lora.report.page import render_html
from lbm_lora.report.text import full_text, short_text
from lbm_lora.report.write import installed_versions, report_paths, write_report

__all__ = [
    "SCHEMA",
    "Provenance",
    "Report",
    "full_text",
    "installed_versions",
    "parse_report",
    "render_html",
    "report_json",
    "report_paths",
    "report_schema",
    "short_text",
    "write_report",
]
