"""The options of the verb `base`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Checkpoint, File, Named
from lbm_lora.configs.output_options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class BaseConfig(OutputOptions):
    """Make the exact base from a backbone and LBM's config.yaml, as .safetensors and .ckpt."""

    save_path: File
    """Write the base here: OUT.ckpt or OUT.safetensors. Both files are written, whichever you name."""
    config_path: File | None = None
    """Read LBM's settings from this config.yaml. Default: those of the published LBM."""
    backbone_signature: Annotated[str, Named("BACKBONE")] | None = None
    """Make the base from this backbone: a hub id, a diffusers folder or a single SDXL file. Default: the one that the
    config names, else SDXL from the hub."""
    torch_dtype: Literal["float", "fp16", "bf16"] = "bf16"
    """Store the base in this precision. It must be the one that training started from."""
    tuned_model_path: Checkpoint | None = None
    """Compare the base with this tuned checkpoint, and say whether it can be its base."""
    test_baseline: Annotated[bool, ADVANCED] = False
    """Compare the base with the model.safetensors next to --config_path."""
    device: Annotated[str, ADVANCED] = "cpu"
    """Has no effect: the base is always made on the CPU. Kept for the documented command line."""
