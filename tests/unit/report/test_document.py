"""JSON of a report: a fixed schema, and back."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lbm_lora.adapter import LedgerRow, Status
from lbm_lora.errors import InputError
from lbm_lora.fidelity.outputs import OutputComparison
from lbm_lora.fidelity.weights import WeightReport
from lbm_lora.report import Provenance, Report, parse_report, report_json, report_schema

KEYS = {
    "": ["schema", "verdict", "weights", "outputs", "notes", "provenance"],
    "weights": [
        *("base", "tuned", "adapter", "tensors", "counts", "excluded_reasons", "matched", "failed", "success_rate"),
        *("relative_error", "lora_error", "mean_module_error", "mean_relative_mean_error", "mean_error", "perfect"),
        *("left_out_share", "noise_floor", "bands", "best", "worst", "blocks", "rows", "made_for_output"),
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
    "score images": ["steps", "psnr", "ssim", "lpips", "mask_psnr", "mask_ssim"],
    "summary": [
        *("variant", "steps", "mean_psnr", "worst_psnr", "mean_ssim", "worst_ssim", "mean_lpips", "worst_lpips"),
        *("equal_images", "worst_image"),
    ],
    "denoiser": ["variant", "timestep", "mean_error", "worst_error", "worst_image"],
    "loras": ["variant", "file", "nbytes", "method", "dtype", "split", "ranks"],
}


def test_the_keys(report: Report, several: OutputComparison) -> None:
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
        "score images": scores[0]["pictures"][0],
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


def test_the_text_is_what_json_makes_of_the_values(report: Report) -> None:
    text = report_json(replace(report, notes=("é <1e-05>",)))
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    assert '"lpips": 2e-05,' in text  # as Python spells it
    assert '"é <1e-05>"' in text


@pytest.fixture
def document(report: Report, several: OutputComparison) -> dict[str, Any]:
    """A report with all that there can be, as its JSON."""
    given = Provenance(files={"base": "b"}, settings={"seed": 0}, versions={"torch": "2"})
    return json.loads(report_json(replace(report, outputs=several), provenance=given))


def test_the_json_schema_describes_the_file(document: dict[str, Any], weights: WeightReport) -> None:
    Draft202012Validator.check_schema(report_schema())
    validator = Draft202012Validator(report_schema())
    validator.validate(document)
    validator.validate(json.loads(report_json(Report(weights=weights))))
    assert document["outputs"]["images"][0]["scores"][1]["pictures"][0]["psnr"] == "inf"
    document["outputs"]["images"][0]["scores"][1]["pictures"][0]["psnr"] = "high"
    del document["weights"]["bands"]
    assert {error.validator for error in validator.iter_errors(document)} == {"required", "anyOf"}


def test_a_field_that_is_added_later_is_passed_over(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    document["weights"]["rows"][0]["new"] = document["new"] = 1
    assert parse_report(json.dumps(document)) == parse_report(text)


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("verdict",), "fine", "verdict: Input should be 'excellent', 'good', 'poor' or 'noise'"),
        (("notes",), None, "notes: Input should be a valid array"),
        (("weights", "tensors"), "6", "weights.tensors: Input should be a valid integer"),
        (("weights", "tensors"), 6.5, "weights.tensors: Input should be a valid integer"),
        (("weights", "relative_error"), "0.3", "weights.relative_error: Input should be a valid number"),
        (("weights", "rows", 1, "status"), "whole", "weights.rows.1.status: Input should be 'lora', 'dense', "),
        (("weights", "rows", 1, "shape"), [8, "4"], "weights.rows.1.shape.1: Input should be a valid integer"),
        (("weights", "counts"), {"a\n\x1b": "6"}, r"weights.counts.a\n\x1b: Input should be a valid integer"),
        (("outputs", "steps"), 1, "outputs.steps: Input should be a valid array"),
        (("outputs", "images", 0, "scores", 1), {}, "outputs.images.0.scores.1.pictures: Field required"),
    ],
)
def test_wrong_values_are_refused_with_their_place(
    document: dict[str, Any], place: tuple[str | int, ...], value: object, complaint: str
) -> None:
    entry: Any = document
    for step in place[:-1]:
        entry = entry[step]
    entry[place[-1]] = value
    with pytest.raises(InputError) as caught:
        parse_report(json.dumps(document))
    assert str(caught.value).startswith(f"this report does not hold what lbm-lora/report/2 says: {complaint}")
    assert str(caught.value).endswith(". Make it again.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "this is not a report: a JSON object with the schema lbm-lora/report/2 is wanted."),
        ("{}", "this is not a report: a JSON object with the schema lbm-lora/report/2 is wanted."),
        (
            '{"schema": "lbm-lora/report/2"',
            "this is not a report: a JSON object with the schema lbm-lora/report/2 is wanted.",
        ),
        ("[1]", "this is not a report: a JSON object with the schema lbm-lora/report/2 is wanted."),
        (
            '{"schema": "lbm-lora/report/9"}',
            "this report has the schema lbm-lora/report/9, this program reads lbm-lora/report/2. Make the report "
            "again.",
        ),
        (
            '{"schema": "lbm-lora/report/2"}',
            "this report does not hold what lbm-lora/report/2 says: verdict: Field required. Make it again.",
        ),
    ],
)
def test_what_is_no_report(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_report(text)
    assert str(caught.value) == message
