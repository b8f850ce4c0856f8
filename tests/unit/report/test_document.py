"""JSON of a report: a fixed schema, and back."""

import json
from dataclasses import replace

from lbm_lora.fidelity.outputs import OutputComparison
from lbm_lora.report import Report, report_json

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
