"""Result of compress: the LoRA, its fidelity, its path and how to use it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.adapter import Status
from lbm_lora.errors import plural
from lbm_lora.report.wording import decibel, megabytes, printable

if TYPE_CHECKING:
    from lbm_lora.workflows.compress import CompressResult


def compress(result: "CompressResult", _: bool) -> str:
    """Return five lines for a reader who has never used a LoRA of an LBM."""
    base, lora = _quoted(result.base), _quoted(result.adapter)
    part = round(result.tuned_nbytes / result.nbytes)
    lines = [
        f"Made     {result.adapter}, {megabytes(result.nbytes)}: 1/{part} of the tuned checkpoint. {_contents(result)}",
        f"Quality  {_quality(result)}",
        f"See      {result.page} and {result.comparison}",
        f"Use      lbm-lora infer --base_model_path {base} --lora_path {lora} --source_image photo.jpg "
        "--output_path out.png",
        f'Python   import lbm_lora; pipe = lbm_lora.LBMPipeline.from_checkpoint("{result.base.as_posix()}"); '
        f'pipe.load_lora_weights("{result.adapter.as_posix()}"); pipe("photo.jpg").images[0].save("out.png")',
        f"ComfyUI  {_comfyui(result)}",
        *([f"Also     {', '.join(str(twin.path) for twin in result.twins)}"] if result.twins else []),
    ]
    return "\n".join(map(printable, lines))


def _comfyui(result: "CompressResult") -> str:
    ours, stock = "The node Load LBM LoRA takes the LoRA as it is", "ComfyUI's own LoraLoaderModelOnly"
    made = next((twin.path for twin in result.twins if twin.format == "comfyui"), None)
    if made is not None:
        return f"{ours}, {stock} takes {made}."
    save_to = _quoted(result.adapter.with_suffix(".comfyui.safetensors"))
    return (
        f"{ours}; for {stock}: lbm-lora convert --lora_path {_quoted(result.adapter)} --to comfyui --save_to {save_to}"
    )


def _contents(result: "CompressResult") -> str:
    weights = result.report.weights
    held = sum(weights.counts.get(status, 0) for status in (Status.LORA, Status.DENSE))
    left_out = weights.counts.get(Status.EXCLUDED, 0)
    text = f"It changes {held:,} of the denoiser's {weights.tensors:,} tensors"
    return f"{text}; {left_out:,} that matter least were left out to save bytes." if left_out else f"{text}."


def _quality(result: "CompressResult") -> str:
    made, alone = result.with_lora, result.without
    images = plural(result.images, "image")
    seen = plural(result.seen_images, "of them", "of them") if result.seen_images < result.images else "all"
    on = f"{images}, {seen} calibrated on" if result.seen_images else f"{images} that it was not calibrated on"
    worst = f" ({decibel(made.worst_psnr)} dB for the worst of them)" if result.images > 1 else ""
    return (
        f"PSNR {decibel(made.mean_psnr)} dB to the tuned model's images{worst}, on {on}; the base alone has "
        f"{decibel(alone.mean_psnr)} dB."
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
