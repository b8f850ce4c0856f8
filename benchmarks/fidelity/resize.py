"""Compare a calibrated resize of the mini model's LoRA with a plain one, at equal bytes, on held-out images.

    python -m benchmarks.fidelity.resize        # writes a result file to benchmarks/results/fidelity

The LoRA has rank 32/16. Statistics come from the bundled photos, scores from the sources of the bundled pairs, which
calibration does not see.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import tyro

from benchmarks.command import MINI_PAIR, MINI_TUNED, arguments, lbm_lora, mini_base
from benchmarks.fidelity.kinds import HELD_OUT
from benchmarks.fidelity.outputs import HeldOut, Kind
from benchmarks.results import FOLDER, WORK, command_of, write_result
from lbm_lora import bundled

SHARES = (0.5, 0.25, 0.125)
"""Sizes of the resized files, of the LoRA's."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Resize the mini model's LoRA to several sizes, plain and calibrated, and measure all files."""

    work: Path = WORK / "resize"  # folder for the LoRAs; statistics in it are reused
    threads: int = 1  # torch threads
    results: Path = FOLDER / "fidelity"  # folder of result files


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the result."""
    options = tyro.cli(Options, args=argv, prog="python -m benchmarks.fidelity.resize", use_underscores=True)
    torch.set_num_threads(options.threads)
    path = write_result(
        options.results,
        "resize",
        **measured(options.work.resolve()),
        command=command_of("benchmarks.fidelity.resize", options),
        settings={"calibration": "the bundled photos", "files": "fp16", "network": "fp32", "steps": 1},
        pair=MINI_PAIR,
        cores=options.threads,
    )
    print(path)
    return 0


def measured(folder: Path, *, shares: Sequence[float] = SHARES, most: int | None = None) -> dict[str, Any]:
    """Return the means of the scores of the LoRA, and of its resized files by method.

    Args:
        most: use only so many held-out images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, statistics = mini_base(folder / "base.safetensors"), folder / "statistics.safetensors"
    lora = folder / "lora.safetensors"
    pair = {"base_model_path": base, "tuned_model_path": MINI_TUNED}
    lbm_lora(arguments("extract", **pair, save_to=lora, save_precision="fp16", device="cpu"))
    if not statistics.exists():
        flags = {"tuned_model_path": MINI_TUNED, "images": bundled.PHOTOS, "torch_dtype": "float", "device": "cpu"}
        lbm_lora(arguments("calibrate", **flags, save_to=statistics))
    sizes = tuple(f"{round(share * lora.stat().st_size)}B" for share in shares)
    images = sorted(bundled.PAIRS.glob("*.source.png"))[:most]
    held_out = HeldOut(base, MINI_TUNED, {HELD_OUT: Kind(images=images)})
    files: dict[str, list[dict[str, Any]]] = {}
    for method, calibration in (("plain", None), ("calibrated", statistics)):
        flags = {
            "lora_path": lora,
            "max_size": sizes,
            "calibration": calibration,
            "save_to": folder / f"{method}.safetensors",
        }
        first = lbm_lora(arguments("resize", **flags))
        files[method] = [
            {"resize_error": one["resize_error"], **_means(held_out, Path(one["adapter"]))}
            for one in (first, *first["further"])
        ]
    return {"lora": _means(held_out, lora), "base": _means(held_out, None), "files": files}


def _means(held_out: HeldOut, lora: Path | None) -> dict[str, float]:
    found = held_out.measure(lora, [HELD_OUT])
    scores = found.pop(HELD_OUT)
    return {**found, **{key: round(fmean(scores[key]), 3) for key in ("denoiser_psnr", "image_psnr", "error_db")}}


if __name__ == "__main__":
    sys.exit(main())
