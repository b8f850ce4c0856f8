"""Result of compress: the LoRA, its fidelity, its path and how to use it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.errors import plural
from lbm_lora.report.wording import decibel, megabytes

if TYPE_CHECKING:
    from lbm_lora.workflows.compress import CompressResult


def compress(result: "CompressResult", _: bool) -> str:
    """Return five lines for a reader who has never used a LoRA of an LBM."""
    base, lora = result.base.as_posix(), result.adapter.as_posix()
    return "\n".join(
        [
            f"Made     {result.adapter} ({megabytes(result.nbytes)}, 1/{round(result.tuned_nbytes / result.nbytes)} of "
            "the tuned checkpoint), from all "
            f"{plural(result.report.weights.tensors, 'tensor')} of the denoiser.",
            f"Quality  {_quality(result)}",
            f"See      {result.page} and {result.comparison}",
            f"Use      lbm-lora infer --base_model_path {_quoted(result.base)} --lora_path {_quoted(result.adapter)} "
            "--source_image photo.jpg --output_path out.png",
            f'Python   pipe = lbm_lora.LBMPipeline.from_checkpoint("{base}"); pipe.load_lora_weights("{lora}"); '
            "pipe(photo)",
            f"ComfyUI  lbm-lora fuse --base_model_path {_quoted(result.base)} --lora_path {_quoted(result.adapter)} "
            "--save_to fused.safetensors makes a checkpoint that loaders of LBM read.",
        ]
    )


def _quality(result: "CompressResult") -> str:
    made, alone = result.with_lora, result.without
    images = plural(result.images, "image")
    seen = plural(result.seen_images, "of them", "of them") if result.seen_images < result.images else "all"
    on = f"{images}, {seen} calibrated on" if result.seen_images else f"{images} that it was not calibrated on"
    return (
        f"PSNR {decibel(made.mean_psnr)} dB to the tuned model's images ({decibel(made.worst_psnr)} dB at worst), on "
        f"{on}; the base alone has {decibel(alone.mean_psnr)} dB."
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
