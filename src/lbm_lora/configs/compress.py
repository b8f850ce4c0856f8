"""The options of the verb `compress`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lbm_lora.configs.marks import (
    ADVANCED,
    HUB_CHECKPOINT,
    POSITIONAL,
    Checkpoint,
    Count,
    File,
    Folder,
    Images,
    Named,
    Seed,
)
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import ForeignFormat


@dataclass(frozen=True, kw_only=True)
class CompressConfig(OutputOptions):
    """Make a small LoRA of a fine-tuned model in one step: base, calibration, extraction, and comparison in images."""

    tuned: Annotated[Path, Named("TUNED"), HUB_CHECKPOINT, POSITIONAL]
    """The fine-tuned checkpoint, or what holds it with its config.yaml: a folder, or user/repo on the hub."""
    size: Annotated[str | None, Named("SIZE")] = None
    """Largest size of the LoRA file (50MB, 800KB). Default: a fiftieth of the tuned checkpoint's size."""
    images: Images = ()
    """Source images of the kind that the model is used on: images, folders or quoted globs. Every fourth one is held
    out for measuring, 8 at most. Default: the four photos bundled with the package."""
    output: Folder | None = None
    """Write everything to this folder. Default: NAME_lora in the current folder."""
    base_model_path: Checkpoint | None = None
    """The base. Default: the exact_base.safetensors in the output folder, or next to the tuned checkpoint if that is
    given as a file. If there is none, it is made."""
    backbone_signature: Annotated[str | None, Named("BACKBONE")] = None
    """Make the base from this backbone: hub id, folder or file. Default: that of config.yaml, else SDXL on the hub."""
    device: Annotated[str, Named("DEVICE")] = "auto"
    """Run on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N."""
    name: Annotated[str | None, Named("NAME"), ADVANCED] = None
    """Name of the LoRA: NAME_lora.safetensors. Default: the checkpoint's name, or the folder's of a
    model.safetensors."""
    calibration: Annotated[File | None, ADVANCED] = None
    """Reuse these statistics of an earlier run (calibration.safetensors in its folder) to make another size without
    measuring again. --images are then used only for the comparison."""
    count: Annotated[Count, ADVANCED] = 16
    """Calibrate on at most this many images, evenly spread over the given ones."""
    save_precision: Annotated[Literal["auto", "float", "fp16", "bf16", "int8"], ADVANCED] = "auto"
    """Precision of the LoRA file. auto gives each rank, bias and norm the bits that it is worth. Only lbm-lora reads
    auto and int8: --also and `lbm-lora convert` make files for other programs."""
    also: Annotated[tuple[ForeignFormat, ...], ADVANCED] = ()
    """Also write the LoRA in these formats, next to the native file: NAME.comfyui.safetensors, and so on. What a format
    cannot hold is left out there, with a warning."""
    seed: Annotated[Seed, ADVANCED] = 0
    """Seed for the bridge noise."""
    torch_dtype: Annotated[Literal["float", "fp16", "bf16"], ADVANCED] = "float"
    """Precision of the networks in the comparison. Below float, their rounding hides small differences."""
