"""The options of the verb `refine`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbm_lora.configs.values import AlphaIs


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Let a LoRA learn the tuned model's own outputs on images, at the ranks that it has; the better one is kept."""

    base_model_path: Path
    """Checkpoint that the LoRA was made for."""
    tuned_model_path: Path
    """The fine-tuned checkpoint whose outputs it is to give back."""
    lora_path: Path
    """The LoRA to refine; the best start is a calibrated extraction."""
    images: str
    """Image folder or quoted glob ('pairs/*.source.png'): sources of the kind that the model is used on, the more
    the better."""
    save_to: Path
    """Where to write the refined LoRA: a .safetensors file."""
    lora_alpha_is: AlphaIs = "auto"
    """What alpha in the LoRA file means: the rank (scaling 1), or what it says (file). auto: the rank in files of the
    earlier implementation, else what it says."""
    held_images: str | None = None
    """Other images to measure on. Default: one in 8 of the images, up to 16, which are not learnt from then."""
    steps: int = 200
    """Optimizer steps."""
    batch_size: int = 16
    """Points of the bridge in each step. They go through the network together: 1 or 2 for the full-size model."""
    learning_rate: float = 0.04
    """Of each tensor, relative to the root mean square of its values times the error of the given LoRA."""
    mirror: bool = True
    """Learn from mirrored images, too."""
    size: int | None = None
    """Square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    timesteps: tuple[float, ...] = ()
    """Only these of the trained timesteps. Default: all of them, drawn by their probability."""
    seed: int = 0
    """Seed for the bridge noise and the order."""
    save_precision: Literal["float", "fp16", "bf16", "int8"] | None = None
    """Precision of the file. Default: that of the given LoRA."""
    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda or cuda:N."""
    torch_dtype: Literal["float", "bf16"] = "float"
    """Precision that the networks run in; bf16 cannot see errors below about 1 %."""
    config_path: Path | None = None
    """LBM's config.yaml, for checkpoints that have none beside them or in them."""
