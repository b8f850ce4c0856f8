"""Measured results of an adapter: their values, and the forms in which people and programs read them (layer L3)."""

from lbm_lora.report.compare import compare_weights, file_labels
from lbm_lora.report.document import SCHEMA, Provenance, Report, parse_report, report_json, report_schema
from lbm_lora.report.html import render_html
from lbm_lora.report.images import ImageSet
from lbm_lora.report.outputs import (
    DenoiserScore,
    DenoiserSummary,
    ImageComparison,
    ImageScore,
    LoraFile,
    OutputComparison,
    VariantScores,
    VariantSummary,
    summarize,
    summarize_denoiser,
    worst_first,
)
from lbm_lora.report.text import full_text, short_text
from lbm_lora.report.values import BANDS, band_of
from lbm_lora.report.weights import BlockResult, TensorResult, WeightReport, weight_report
from lbm_lora.report.write import installed_versions, is_report, report_paths, write_report

__all__ = [
    "BANDS",
    "SCHEMA",
    "BlockResult",
    "DenoiserScore",
    "DenoiserSummary",
    "ImageComparison",
    "ImageScore",
    "ImageSet",
    "LoraFile",
    "OutputComparison",
    "Provenance",
    "Report",
    "TensorResult",
    "VariantScores",
    "VariantSummary",
    "WeightReport",
    "band_of",
    "compare_weights",
    "file_labels",
    "full_text",
    "installed_versions",
    "is_report",
    "parse_report",
    "render_html",
    "report_json",
    "report_schema",
    "short_text",
    "summarize",
    "summarize_denoiser",
    "weight_report",
    "worst_first",
    "report_paths",
    "write_report",
]
