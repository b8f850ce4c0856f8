"""JSON of a report: a fixed schema, and back."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.adapter import LedgerRow, Status
from lbm_lora.errors import InputError
from lbm_lora.report import OutputComparison, Provenance, Report, WeightReport, parse_report, report_json

KEYS = {
    "": ["schema", "verdict", "weights", "outputs", "notes", "provenance"],
    "weights": [
        *("base", "tuned", "adapter", "tensors", "counts", "excluded_reasons", "matched", "failed", "success_rate"),
        *("relative_error", "lora_error", "mean_module_error", "mean_relative_mean_error", "mean_error", "perfect"),
        *("left_out_share", "noise_floor", "bands", "best", "worst", "blocks", "rows"),
    ],
    "blocks": ["block", "tensors", "relative_error", "delta_share", "error_share"],
    "rows": [
        *("name", "status", "reason", "shape", "rank", "relative_error", "mean_error", "relative_mean_error"),
        *("delta_norm", "error_share", "noise_floor"),
    ],
    "outputs": [
        *("reference", "steps", "timesteps", "seed", "dtype", "device", "lpips", "images", "summary", "denoiser"),
        "loras",
    ],
    "images": ["image", "width", "height", "scores"],
    "scores": ["variant", "denoiser", "pictures"],
    "score denoiser": ["timestep", "error"],
    "score pictures": ["steps", "psnr", "ssim", "lpips", "mask_psnr", "mask_ssim"],
    "summary": [
        *("variant", "steps", "mean_psnr", "worst_psnr", "mean_ssim", "worst_ssim", "mean_lpips", "worst_lpips"),
        *("equal_images", "worst_image"),
    ],
    "denoiser": ["variant", "timestep", "mean_error", "worst_error", "worst_image"],
    "loras": ["variant", "file", "nbytes", "method"],
}


def test_the_schema(report: Report, several: OutputComparison) -> None:
    document = json.loads(report_json(replace(report, outputs=several)))
    scores = document["outputs"]["images"][0]["scores"]
    found = {
        "": document,
        "weights": document["weights"],
        "blocks": document["weights"]["blocks"][0],
        "rows": document["weights"]["rows"][0],
        "outputs": document["outputs"],
        "images": document["outputs"]["images"][0],
        "scores": scores[0],
        "score denoiser": scores[0]["denoiser"][0],
        "score pictures": scores[0]["pictures"][0],
        "summary": document["outputs"]["summary"][0],
        "denoiser": document["outputs"]["denoiser"][0],
        "loras": document["outputs"]["loras"][0],
    }
    assert {name: list(value) for name, value in found.items()} == KEYS
    assert document["schema"] == "lbm-lora/report/2"
    assert document["verdict"] == "good"
    assert document["weights"]["rows"][1]["shape"] == [8, 4, 3, 3]
    assert scores[1]["pictures"][0]["psnr"] == "inf"
    assert document["outputs"]["timesteps"] == [1000.0, 500.0]


def test_round_trip(report: Report, several: OutputComparison) -> None:
    assert parse_report(report_json(report)) == report
    more = replace(report, outputs=several)
    assert parse_report(report_json(more)) == more
    without = Report(weights=report.weights)
    assert parse_report(report_json(without)) == without


def test_infinite_errors_survive(build: Callable[..., WeightReport], row: Callable[..., LedgerRow]) -> None:
    report = Report(weights=build(row("a.weight", Status.LORA, (4, 4), error=math.inf, rank=2)))
    text = report_json(report)
    assert "Infinity" not in text
    assert "NaN" not in text
    back = parse_report(text).weights
    assert back.relative_error == math.inf
    assert back.rows[0].relative_error == math.inf
    assert math.isnan(back.rows[0].error_share)


def test_provenance(report: Report) -> None:
    given = Provenance(files={"base": "b.safetensors"}, settings={"size": None, "lora_path": Path("l")}, versions={})
    found = json.loads(report_json(report, provenance=given))["provenance"]
    assert found == {"files": {"base": "b.safetensors"}, "settings": {"size": None, "lora_path": "l"}, "versions": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "this is no report: a JSON object with the schema lbm-lora/report/2 is wanted."),
        ("[1]", "this is no report: a JSON object with the schema lbm-lora/report/2 is wanted."),
        (
            '{"schema": "lbm-lora/report/9"}',
            "this report has the schema lbm-lora/report/9, this program reads lbm-lora/report/2. Make the report "
            "again.",
        ),
        (
            '{"schema": "lbm-lora/report/2"}',
            "this report does not hold what lbm-lora/report/2 says: KeyError('outputs'). Make it again.",
        ),
    ],
)
def test_what_is_no_report(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_report(text)
    assert str(caught.value) == message
