"""What a user reads of an extraction, a validation, a calibration and a refinement."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.adapter import Status
from lbm_lora.cli.present import present
from lbm_lora.errors import QualityError
from lbm_lora.ranks import Prediction, TrialImages
from lbm_lora.report import Report, WeightReport, full_text
from lbm_lora.workflows.resize_result import ResizedLayer, ResizeResult
from lbm_lora.workflows.validate import ValidateResult

File = Callable[[str, int], Path]

WRITTEN = "wrote lora.safetensors (0.12 MB)\nwrote lora_config.yaml (0.3 kB)"


def test_a_validation(weights: WeightReport, file: File, verbose: str) -> None:
    report = Report(weights=weights, notes=("The VAEs differ.",))
    result = ValidateResult(
        report=report,
        files=(file("r/report.txt", 3_700), file("r/report.html", 6_640_000)),
        layer_names=file("names.txt", 51_000),
        seen_images=(),
        failures=(QualityError("The total relative error is 0.5123, above the limit."),),
    )
    text = (
        f"{full_text(report)}\n\nwrote r/report.txt (3.7 kB)\nwrote r/report.html (6.64 MB)\nwrote names.txt (51.0 kB)"
    )
    assert present("validate", result) == text
    assert present("validate", result, verbose=True) == f"{verbose}\n\n{text}"


@pytest.fixture
def resized(file: File) -> ResizeResult:
    layers = (
        ResizedLayer(
            name="a.weight", status=Status.LORA, reason="fewer ranks", rank_before=32, rank=16, relative_error=0.05
        ),
        ResizedLayer(
            name="a.bias",
            status=Status.EXCLUDED,
            reason="in --exclude",
            rank_before=None,
            rank=None,
            relative_error=1.0,
        ),
    )
    return ResizeResult(
        source="lora.safetensors",
        adapter=file("small.safetensors", 20_000),
        nbytes=20_000,
        nbytes_before=45_000,
        linear_rank=16,
        conv_rank=8,
        linear_rank_before=32,
        conv_rank_before=16,
        resize_error=0.052,
        layers=layers,
        left_out=("a.bias",),
        notes=("Left out 1 delta: in --exclude.",),
        predicted=Prediction(nbytes=20_000, error=0.05, of="weights", foreseen=0.05),
        sizes=(Prediction(nbytes=10_000, error=0.1, of="weights", foreseen=0.1),),
    )


def test_a_resize_shows_the_lora_before_and_after(resized: ResizeResult) -> None:
    assert present("resize", resized) == (
        "1 LoRA of lora.safetensors, with the error against it:\n"
        "  rank up to  conv rank up to    bytes  error of weights  file\n"
        "          32               16  45.0 kB                 -  lora.safetensors\n"
        "          16                8  20.0 kB            5.20 %  small.safetensors\n\n"
        "Left out 1 delta: in --exclude.\n\n"
        "Predicted relative error of the weights: 5.00 %. Smaller and larger files, "
        "with ranks chosen for all layers together (--max_size), would give:\n"
        "  10.0 kB  10.0 %\n\n"
        "wrote small.safetensors (20.0 kB)"
    )
    assert present("resize", resized, verbose=True).startswith(
        "small.safetensors\n"
        "  layer     kept as   rank before  rank    error\n"
        "  a.weight  lora               32    16   5.00 %\n"
        "  a.bias    excluded            -     -  100.0 %\n\n"
    )


def test_several_sizes_of_a_calibrated_resize_are_one_table(resized: ResizeResult, file: File) -> None:
    of_output = Prediction(nbytes=20_000, error=0.01, of="output", foreseen=0.02, measured=0.01)
    first = replace(resized, predicted=of_output, images=TrialImages(psnrs=(("a.png", 50.0), ("b.png", 40.0))))
    second = replace(first, adapter=file("tiny.safetensors", 8_000), nbytes=8_000, linear_rank=4, conv_rank=2, notes=())
    assert present("resize", replace(first, further=(second,))) == (
        "2 LoRAs of lora.safetensors, with the error against it:\n"
        "  rank up to  conv rank up to    bytes  error of weights  of output   PSNR  worst  file\n"
        "          32               16  45.0 kB                 -          -      -      -  lora.safetensors\n"
        "          16                8  20.0 kB            5.20 %     1.00 %  45.00  40.00  small.safetensors\n"
        "           4                2   8.0 kB            5.20 %     1.00 %  45.00  40.00  tiny.safetensors\n\n"
        "small.safetensors: Left out 1 delta: in --exclude.\n\n"
        "wrote small.safetensors (20.0 kB)\nwrote tiny.safetensors (8.0 kB)"
    )
    text = present("resize", first)
    assert "Lower bound of the relative error of the denoiser's output: 1.00 %, which takes layers as indep" in text
    assert "One-step images against those of the LoRA before, 2 of them: PSNR 45.0 dB on average, 40.0 dB" in text
