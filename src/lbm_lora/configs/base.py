"""The options of the verb `base`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Make the exact base from a backbone and LBM's config.yaml, as .safetensors and .ckpt."""

    save_path: Path
    """Where to write: OUT.ckpt or OUT.safetensors. Both are written."""
    config_path: Path | None = None
    """LBM's config.yaml. Default: the published LBM's settings."""
    backbone_signature: str | None = None
    """Hub id, diffusers folder or single-file SDXL checkpoint. Default: the config's, else SDXL on the hub."""
    torch_dtype: Literal["float", "fp16", "bf16"] = "bf16"
    """Precision of the base: the one that training started from."""
    tuned_model_path: Path | None = None
    """Tuned checkpoint: say how close the base is to it, and whether it can be its base."""
    test_baseline: bool = False
    """The same, with the model.safetensors beside --config_path."""
    device: str = "cpu"
    """Accepted for the documented command line; the base is made on the CPU whatever it says."""
