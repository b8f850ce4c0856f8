"""Scores of images that a LoRA was made with."""

import json
import math

import pytest

from lbm_lora.adapter import Adapter, AdapterMetadata
from lbm_lora.fidelity.outputs import ImageComparison, ImageScore, VariantScores
from lbm_lora.fidelity.seen import remark_on_seen, seen_of
from lbm_lora.naming import DENOISER_PREFIX


def adapter(**facts: object) -> Adapter:
    return Adapter(
        {}, {}, AdapterMetadata(facts={key: json.dumps(value) for key, value in facts.items()}), DENOISER_PREFIX
    )


def scored(image: str, psnr: float) -> ImageComparison:
    variants = tuple(
        VariantScores(variant=name, denoiser=(), images=(ImageScore(steps=1, psnr=value, ssim=0.5),))
        for name, value in (("base", 10.0), ("base + LoRA", psnr))
    )
    return ImageComparison(image=image, width=8, height=8, scores=variants)


def test_images_are_known_from_calibration_and_refinement() -> None:
    made = adapter(lbm_lora_settings={"calibration_images": "aa bb"}, lbm_lora_refinement={"images": "cc"})
    assert seen_of(made, ["bb", "dd", "cc"]) == (True, False, True)
    assert seen_of(adapter(), ["bb"]) == (False,)
    assert seen_of(adapter(lbm_lora_settings={"rank": 4}), ["bb"]) == (False,)


IMAGES = [scored("a.png", 60.0), scored("b.png", 30.0), scored("c.png", 40.0)]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ((False, False, False), ""),
        (
            (True, False, False),
            "1 of 3 images was used to make the LoRA (a.png): these numbers flatter it. "
            "Held out 2 images: a mean PSNR of 35.00 dB at 1 step.",
        ),
        (
            (True, True, True),
            "3 of 3 images were used to make the LoRA (a.png, b.png, c.png): these numbers flatter it. "
            "Measure on images that it was not calibrated or refined on.",
        ),
    ],
)
def test_what_flatters_is_said_with_the_numbers_of_the_rest(seen: tuple[bool, ...], said: str) -> None:
    assert remark_on_seen(seen, IMAGES, "base + LoRA") == said


def test_equal_images_have_no_mean_in_decibels() -> None:
    images = [*IMAGES[:2], scored("d.png", math.inf)]
    assert remark_on_seen((True, True, False), images, "base + LoRA").endswith(
        "Held out 1 image: equal images at 1 step."
    )
