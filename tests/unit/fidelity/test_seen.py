"""Scores of images that a LoRA was made with."""

import json
from pathlib import Path

import pytest

from lbm_lora.adapter import Adapter, AdapterMetadata
from lbm_lora.fidelity.comparison import lora_files
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


def of_settings(path: Path | None, settings: dict[str, object] | None) -> Adapter:
    """An adapter with nothing but its metadata."""
    facts = {} if settings is None else {"lbm_lora_settings": json.dumps(settings)}
    return Adapter(modules={}, dense={}, metadata=AdapterMetadata(facts=facts), path=path)


@pytest.mark.parametrize(
    ("settings", "series", "ranks"),
    [
        (
            {"method": "plain", "dtype": "bf16", "rank_policy": "fixed", "rank": 16, "conv_rank": 16},
            "plain, bf16, equal ranks",
            "rank 16",
        ),
        (
            {"method": "plain", "dtype": "bf16", "rank_policy": "fixed", "rank": 32, "conv_rank": 16},
            "plain, bf16, conv rank 1/2 of rank",
            "rank 32, conv 16",
        ),
        (
            {"method": "calibrated", "dtype": "fp16", "rank_policy": "max_size", "max_size": "9MB"},
            "calibrated, fp16, ranks chosen across layers",
            "",
        ),
        (
            {"method": "plain", "dtype": "int8", "rank_policy": "keep_energy", "keep_energy": 0.9},
            "plain, int8, same energy in each layer",
            "",
        ),
        ({"rank_policy": "other"}, "other", ""),
        (None, "not said", ""),
    ],
)
def test_what_a_file_says(tmp_path: Path, settings: dict[str, object] | None, series: str, ranks: str) -> None:
    path = tmp_path / "l.safetensors"
    path.write_bytes(b"123")
    (found,) = lora_files({"base + LoRA": of_settings(path, settings), "in memory": of_settings(None, settings)})
    assert (found.variant, found.file, found.nbytes) == ("base + LoRA", "l.safetensors", 3)
    assert (found.series, found.ranks) == (series, ranks)
