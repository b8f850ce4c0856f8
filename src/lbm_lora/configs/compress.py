"""The options of the verb `compress`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """Make a small LoRA of a fine-tuned model in one go: base, calibration, extraction, and a comparison in images."""

    tuned: Positional[Path]
    """The fine-tuned checkpoint, or the folder that holds it with its config.yaml."""
    size: str | None = None
    """Largest size of the LoRA file (50MB, 800KB). Default: a fiftieth of the tuned checkpoint's size."""
    images: tuple[str, ...] = ()
    """Source images of the kind that the model is used on: images, folders, or quoted globs. Every fourth one is held
    out to measure on, 8 at most. Default: the four photos that come with the package."""
    output: Path | None = None
    """Folder for everything that is written. Default: NAME_lora in the current folder."""
    name: str | None = None
    """Name of the LoRA: NAME_lora.safetensors. Default: the checkpoint's name, or the folder's of a
    model.safetensors."""
    base_model_path: Path | None = None
    """The base. Default: the exact_base.safetensors in the output folder or next to the tuned checkpoint; it is made
    where there is none."""
    backbone_signature: str | None = None
    """Backbone to make the base from: hub id, folder or file. Default: the one in config.yaml, else SDXL on the hub."""
    calibration: Path | None = None
    """Statistics of an earlier run (calibration.safetensors in its folder), to make another size without measuring
    again. --images are then only measured on."""
    count: int = 16
    """Most images to calibrate on; of more, so many are taken, evenly spread."""
    save_precision: Literal["float", "fp16", "bf16", "int8"] = "fp16"
    """Precision of the LoRA file. int8 holds twice the ranks, for lbm-lora alone: other programs do not read it."""
    seed: int = 0
    """Seed for the bridge noise."""
    device: str = "auto"
    """Device that computes: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N."""
    torch_dtype: Literal["float", "fp16", "bf16"] = "float"
    """Precision of the networks in the comparison. Below float, their rounding hides small differences."""
