"""Measured results of an adapter: their values, and the forms in which people and programs read them (layer L3)."""

from lbm_lora.report.base_text import base_text
from lbm_lora.report.html import render_html
from lbm_lora.report.json_file import SCHEMA, parse_report, report_json
from lbm_lora.report.outputs import (
    DenoiserScore,
    DenoiserSummary,
    ImageComparison,
    LoraFile,
    OutputComparison,
    PictureScore,
    VariantScores,
    VariantSummary,
)
from lbm_lora.report.provenance import Provenance, file_labels, installed_versions
from lbm_lora.report.schema import BANDS, BlockResult, Report, TensorResult, WeightReport, band_of, weight_report
from lbm_lora.report.text import full_text, short_text
from lbm_lora.report.weights import compare_weights
from lbm_lora.report.write import write_report

__all__ = [
    "BANDS",
    "SCHEMA",
    "BlockResult",
    "DenoiserScore",
    "DenoiserSummary",
    "ImageComparison",
    "LoraFile",
    "OutputComparison",
    "PictureScore",
    "Provenance",
    "Report",
    "TensorResult",
    "VariantScores",
    "VariantSummary",
    "WeightReport",
    "band_of",
    "base_text",
    "compare_weights",
    "file_labels",
    "full_text",
    "installed_versions",
    "parse_report",
    "render_html",
    "report_json",
    "short_text",
    "weight_report",
    "write_report",
]
