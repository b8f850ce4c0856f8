"""Numbers, names and verdicts as reports spell them."""

import math

import pytest

from lbm_lora.report import wording

NOISE = "NOISE (above 100 %, more noise than signal: increase the rank, or is it a LoRA of another model?)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"),
        (1.2e-6, "1.2e-04 %"),
        (0.0038, "0.38 %"),
        (0.09994, "9.99 %"),
        (0.09996, "10.0 %"),
        (0.12345, "12.3 %"),
        (1.0, "100.0 %"),
        (2496.0, "249,600 %"),
        (math.inf, "inf"),
        (math.nan, "-"),
    ],
)
def test_percent(value: float, text: str) -> None:
    assert wording.percent(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0 %"), (1e-9, "< 0.01 %"), (0.00005, "0.01 %"), (0.5, "50.0 %")])
def test_share(value: float, text: str) -> None:
    assert wording.share(value) == text


def test_image_scores() -> None:
    assert [wording.decibel(value) for value in (41.017, math.inf, None)] == ["41.02", "equal", "-"]
    assert [wording.similarity(value) for value in (0.999999, 1.0, math.nan, None)] == ["0.9999", "1.0000", "nan", "-"]


def test_dimensions() -> None:
    assert [wording.dimensions(shape) for shape in ((64, 32, 3, 3), (7,), ())] == ["64x32x3x3", "7", "scalar"]


def test_control_characters_are_spelt_out() -> None:
    assert wording.printable("a\x1b[31mb\n\u202ec é") == r"a\x1b[31mb\n\u202ec é"


def test_shortening_keeps_both_ends() -> None:
    name = "up_blocks.0.attentions.1.to_out.0"
    assert wording.shortened(name, 20) == "up_bl...ons.1.to_out.0"[:5] + "..." + name[-12:]
    assert len(wording.shortened(name, 20)) == 20
    assert wording.shortened(name, len(name)) == name


def test_only_equal_images_have_a_distance_of_0() -> None:
    assert [wording.distance(value) for value in (0.12344, 0.00005, 4.9e-5, 0.0, None)] == [
        *("0.1234", "0.0001", "4.9e-05", "0", "-")
    ]


def test_bytes_of_files() -> None:
    assert [wording.megabytes(nbytes) for nbytes in (999, 99_949, 100_000, 3_010_000, 7_050_000_000)] == [
        *("1.0 kB", "99.9 kB", "0.10 MB", "3.01 MB", "7,050.00 MB")
    ]


@pytest.mark.parametrize(
    ("error", "verdict", "meaning"),
    [
        (0.0, "EXCELLENT (below 5 %)", "The adapter reproduces the fine-tune's change exactly."),
        (0.003, "EXCELLENT (below 5 %)", "It keeps more than 99.99 % of the energy"),
        (0.05, "GOOD (5 to 50 %, minor artifacts)", "It keeps 99.75 % of the energy"),
        (0.6, "POOR (50 to 100 %, noticeable degradation)", "It keeps 64.0 % of the energy"),
        (1.2, NOISE, "it holds more noise than signal."),
        (math.inf, NOISE, "values that are not finite"),
    ],
)
def test_verdicts(error: float, verdict: str, meaning: str) -> None:
    assert wording.verdict(error) == verdict
    assert meaning in wording.error_meaning(error)


def test_noise_meaning() -> None:
    assert "no part of the change is rounding" in wording.noise_meaning(0.1, 0.0)
    assert wording.noise_meaning(0.001, 0.02).endswith("the error is below it.")
    assert wording.noise_meaning(0.1, 0.02).endswith("no method can tell apart.")


def test_levels_of_a_psnr() -> None:
    # one level of 255, as the root of the mean squared difference, has 20 log10(255) = 48.13 dB
    assert [wording.levels(psnr) for psnr in (48.1308, 28.1308, 57.0, math.inf)] == [
        "1 of 255 levels", "10 of 255 levels", "0.36 of 255 levels", "equal",
    ]  # fmt: skip


def test_the_band_is_not_about_a_lora_that_was_made_for_the_output() -> None:
    assert wording.weights_verdict(0.3, made_for_output=False) == "GOOD (5 to 50 %, minor artifacts)"
    assert wording.weights_verdict(0.847, made_for_output=True) == "not the measure of this LoRA"
