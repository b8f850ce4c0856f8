"""What a user reads of an extraction, a validation, a calibration and a refinement."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.adapter import Status
from lbm_lora.cli.present import present
from lbm_lora.errors import QualityError
from lbm_lora.extraction import Shrinkage
from lbm_lora.fidelity.output_errors import OutputErrors
from lbm_lora.fidelity.weights import WeightReport
from lbm_lora.ranks import Prediction, TrialErrors, TrialImages
from lbm_lora.report import Report, full_text
from lbm_lora.workflows.calibrate import CalibrateResult
from lbm_lora.workflows.extract import ExtractResult
from lbm_lora.workflows.refine import RefineResult
from lbm_lora.workflows.resize_result import ResizedLayer, ResizeResult
from lbm_lora.workflows.validate import ValidateResult

File = Callable[[str, int], Path]

WRITTEN = "wrote lora.safetensors (0.12 MB)\nwrote lora_config.yaml (0.3 kB)"


@pytest.fixture
def extracted(file: File, weights: WeightReport) -> ExtractResult:
    return ExtractResult(
        adapter=file("lora.safetensors", 123_456),
        sidecar=file("lora_config.yaml", 300),
        nbytes=123_456,
        linear_rank=16,
        conv_rank=8,
        report=weights,
        notes=(),
    )


RANKS = "Rank 16, conv rank 8, each as far as its matrix allows."


def test_an_extraction(extracted: ExtractResult, short: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert present("extract", extracted) == f"{short}\n\n{RANKS}\n\n{WRITTEN}"
    assert capsys.readouterr() == ("", "")  # what is shown is printed by the caller, once


def test_full_rank_is_said_so(extracted: ExtractResult) -> None:
    text = present("extract", replace(extracted, linear_rank=9999, conv_rank=9999))
    assert "\n\nRank full, conv rank full, each as far as its matrix allows.\n\n" in text


def test_every_layer_with_verbose(extracted: ExtractResult, short: str, verbose: str) -> None:
    assert present("extract", extracted, verbose=True) == f"{verbose}\n\n{short}\n\n{RANKS}\n\n{WRITTEN}"


def test_a_calibrated_extraction(extracted: ExtractResult, short: str) -> None:
    result = replace(
        extracted,
        notes=("The VAEs differ.",),
        predicted=Prediction(
            nbytes=123_456,
            error=0.0123456,
            of="output",
            foreseen=0.02,
            low=0.01,
            high=0.02,
            shifted={"content": 0.03, "smaller": 0.02},
            shifted_within={"content": (0.02, 0.04), "smaller": (0.01, 0.03)},
        ),
        shrinkage=Shrinkage(
            kind="shrunk",
            ridge=1.0,
            errors=TrialErrors(typical=0.01, low=0.005, high=0.02, shifted={"content": 0.03}),
            plain=TrialErrors(typical=0.1, low=0.05, high=0.2, shifted={"content": 0.04}),
            base=TrialErrors(typical=0.5, low=0.4, high=0.6, shifted={"content": 0.6}),
        ),
        sizes=(
            Prediction(nbytes=61_728, error=0.05, of="output", foreseen=0.06),
            Prediction(nbytes=1_246_912, error=0.003, of="output", foreseen=0.004),
        ),
        images=TrialImages(psnrs=(("b.png", 41.98), ("a.png", 40.54)), predicted_psnr=40.0),
    )
    assert present("extract", result) == (
        f"{short}\n\n"
        "Ranks chosen for all layers together: up to 16, for convs up to 8.\n\n"
        "The VAEs differ.\n\n"
        "Predicted relative error of the denoiser's output: 1.23 %, 80 % of such inputs between 1.00 % and 2.00 %; "
        "3.00 % (2.00 % to 4.00 %) on inputs with other content, 2.00 % (1.00 % to 3.00 %) on inputs that are smaller. "
        "Smaller and larger files, "
        "with ranks chosen for all layers together (--max_size), would give:\n"
        "  61.7 kB  5.00 %\n"
        "  1.25 MB  0.30 %\n\n"
        "The statistics were worse than plain SVD on some inputs, and shrunk with a ridge of 1.0: output error 1.00 % "
        "against 10.0 % on inputs like the calibration's, 3.00 % against 4.00 % on inputs unlike them.\n\n"
        "One-step images against the tuned model's, 2 of them: PSNR 41.3 dB on average, 40.5 dB at worst "
        "(a.png, predicted 40.0 dB).\n\n"
        f"{WRITTEN}"
    )


def test_several_ranks_are_one_table(extracted: ExtractResult, file: File, verbose: str) -> None:
    further = replace(extracted, adapter=file("full.safetensors", 1_000), linear_rank=9999, conv_rank=9999)
    result = replace(extracted, further=(further,))
    table = (
        "2 LoRAs: base.safetensors + LoRA against tuned.safetensors\n"
        "  rank  conv rank    bytes  error of weights  file\n"
        "    16          8  0.12 MB            51.2 %  lora.safetensors\n"
        "  full       full  0.12 MB            51.2 %  full.safetensors\n\n"
        f"{WRITTEN}\nwrote full.safetensors (1.0 kB)\nwrote lora_config.yaml (0.3 kB)"
    )
    assert present("extract", result) == table
    assert present("extract", result, verbose=True) == (
        f"lora.safetensors\n{verbose}\n\nfull.safetensors\n{verbose}\n\n{table}"
    )


def test_several_sizes_show_what_was_predicted_and_measured(extracted: ExtractResult) -> None:
    prediction = Prediction(nbytes=123_456, error=0.0123456, of="output", foreseen=0.02)
    images = TrialImages(psnrs=(("b.png", 41.98), ("a.png", 40.54)), predicted_psnr=40.0)
    one = replace(extracted, predicted=prediction, sizes=(prediction,), images=images)
    assert present("extract", replace(one, further=(one,))).startswith(
        "2 LoRAs: base.safetensors + LoRA against tuned.safetensors, with the highest of the ranks\n"
        "  rank  conv rank    bytes  error of weights  of output  PSNR  worst  file\n"
        "    16          8  0.12 MB            51.2 %     1.23 %  41.3   40.5  lora.safetensors\n"
    )


def test_an_error_of_weights_alone_is_predicted_without_a_table(extracted: ExtractResult, short: str) -> None:
    predicted = Prediction(nbytes=1, error=0.5, of="weights", foreseen=0.5)
    assert present("extract", replace(extracted, predicted=predicted)) == (
        f"{short}\n\n{RANKS}\n\nPredicted relative error of the weights: 50.0 %.\n\n{WRITTEN}"
    )


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


def test_a_calibration(file: File) -> None:
    result = CalibrateResult(
        statistics=file("statistics.safetensors", 1_000),
        nbytes=1_000,
        layers=792,
        moments=1_304,
        images=1,
        timesteps=(250.0, 1000.0),
        probes=4,
    )
    assert present("calibrate", result) == (
        "Measured 792 layers on 1 image at timesteps 250, 1000, 4 probes each: 1,304 second moments.\n\n"
        "wrote statistics.safetensors (1.0 kB)"
    )


@pytest.mark.parametrize(
    ("step", "kept"),
    [(150, "2.3 dB better, of step 150 of 200"), (0, "no step was better, so the given LoRA is kept")],
)
def test_a_refinement(file: File, step: int, kept: str) -> None:
    result = RefineResult(
        adapter=file("refined.safetensors", 1_000),
        nbytes=1_000,
        before=OutputErrors(typical=0.013, worst=0.02),
        after=OutputErrors(typical=0.01, worst=0.0186),
        gain=2.279,
        step=step,
        steps=200,
        images=234,
        held=16,
    )
    assert present("refine", result) == (
        "Learnt from 234 images.\n\n"
        "Error of the denoiser's output on 16 other images: typical 1.30 % -> 1.00 %, worst 2.00 % -> 1.86 %; "
        f"{kept}.\n\n"
        "wrote refined.safetensors (1.0 kB)"
    )


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
