"""A report as plain text of at most 100 columns: what a terminal shows, and report.txt."""

from lbm_lora.report.text.report import full_text, short_text

__all__ = ["full_text", "short_text"]
