"""The verdict in images."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from lbm_lora.report import LoraFile, OutputComparison
from lbm_lora.report.headline import band_of_image, decibel_place, image_headline


def test_the_worst_image_decides(outputs: OutputComparison) -> None:
    headline = image_headline(outputs)
    assert (headline.lora.variant, headline.lora.steps) == ("base + LoRA", 1)
    assert headline.base is not None
    assert headline.base.variant == "base"
    assert (headline.band, headline.lora.worst_psnr) == ("excellent", 40.5)
    assert headline.file is None
    assert not headline.is_calibrated


def test_the_file_is_that_of_the_lora(outputs: OutputComparison) -> None:
    files = tuple(
        LoraFile(variant=variant, file=f"{method}.safetensors", nbytes=1, method=method)
        for variant, method in (("other", "plain"), ("base + LoRA", "calibrated"))
    )
    headline = image_headline(replace(outputs, loras=files))
    assert headline.file == files[1]
    assert headline.is_calibrated


def test_the_base_alone_is_its_own_headline(
    outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]
) -> None:
    images = [replace(image, scores=image.scores[:1]) for image in outputs.images]
    headline = image_headline(build_outputs(*images))
    assert (headline.lora.variant, headline.base) == ("base", None)
    assert headline.band == "noise"


@pytest.mark.parametrize(
    ("psnr", "band"),
    [(math.inf, "excellent"), (40.0, "excellent"), (39.99, "good"), (30.0, "good"), (20.0, "poor"), (19.9, "noise")],
)
def test_bands(psnr: float, band: str) -> None:
    assert band_of_image(psnr)[0] == band


def test_equal_images_are_said_to_be_equal() -> None:
    assert band_of_image(math.inf)[1] == "equal in every value"


@pytest.mark.parametrize(("psnr", "place"), [(-3.0, 0), (10.0, 0), (35.0, 50), (60.0, 100), (math.inf, 100)])
def test_places_on_the_scale(psnr: float, place: float) -> None:
    assert decibel_place(psnr) == pytest.approx(place)
