"""What a user reads of compress, for values that a run does not give at will. Real results: test_compress.py of the
workflows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lbm_lora.cli.present import present

COUNTS = {"lora": 700, "dense": 400, "unchanged": 6, "excluded": 570}


def result(**changes: object) -> Any:
    summary = {"mean_psnr": 60.5, "worst_psnr": 52.25}
    values: dict[str, object] = {
        "adapter": Path("out dir/relight_lora.safetensors"),
        "base": Path("out dir/exact_base.safetensors"),
        "nbytes": 50_000_000,
        "tuned_nbytes": 5_020_000_000,
        "report": SimpleNamespace(
            weights=SimpleNamespace(tensors=1676, counts={"lora": 700, "dense": 400, "unchanged": 6, "excluded": 570})
        ),
        "images": 3,
        "seen_images": 0,
        "page": Path("out dir/report/report.html"),
        "comparison": Path("out dir/report/comparison.png"),
        "twins": (),
        "with_lora": SimpleNamespace(**summary),
        "without": SimpleNamespace(mean_psnr=18.0, worst_psnr=16.0),
    }
    return cast(Any, SimpleNamespace(**values | changes))


def test_what_was_made_how_good_it_is_where_it_lies_and_how_to_use_it() -> None:
    made, quality, see, use, python, comfy = present("compress", result()).splitlines()
    assert made == (
        f"Made     {Path('out dir/relight_lora.safetensors')}, 50.00 MB: 1/100 of the tuned checkpoint. It changes "
        "1,100 of the denoiser's 1,676 tensors; 570 that matter least were left out to save bytes."
    )
    assert quality == (
        "Quality  PSNR 60.50 dB to the tuned model's images (52.25 dB for the worst of them), on 3 images that it was "
        "not calibrated on; the base alone has 18.00 dB."
    )
    assert see.startswith("See ")
    assert "--base_model_path 'out dir/exact_base.safetensors' --lora_path 'out dir/relight_lora.safetensors'" in use
    assert 'from_checkpoint("out dir/exact_base.safetensors")' in python
    assert comfy == (
        "ComfyUI  The node Load LBM LoRA takes the LoRA as it is; for ComfyUI's own LoraLoaderModelOnly: "
        "lbm-lora convert --lora_path 'out dir/relight_lora.safetensors' --to comfyui "
        "--save_to 'out dir/relight_lora.comfyui.safetensors'"
    )


@pytest.mark.parametrize(
    ("seen", "text"), [(1, "3 images, 1 of them calibrated on;"), (3, "3 images, all calibrated on;")]
)
def test_images_that_were_calibrated_on_are_called_so(seen: int, text: str) -> None:
    assert f"on {text}" in present("compress", result(seen_images=seen))


def test_one_image_has_no_worst() -> None:
    assert "PSNR 60.50 dB to the tuned model's images, on 1 image that" in present("compress", result(images=1))


def test_twins_are_named() -> None:
    formats = {"comfyui": "x.comfyui.safetensors", "peft": "x.peft"}
    twins = tuple(SimpleNamespace(format=name, path=Path(path)) for name, path in formats.items())
    *_, comfy, also = present("compress", result(twins=twins)).splitlines()
    assert also == "Also     x.comfyui.safetensors, x.peft"
    assert comfy.endswith("ComfyUI's own LoraLoaderModelOnly takes x.comfyui.safetensors.")
