"""The options of the verb `calibrate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbm_lora.configs.values import DENSE_UP_TO, SKETCH_RANK


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Measure on images which errors a tuned model's output is sensitive to; extract then spends its bytes there."""

    tuned_model_path: Path
    """The fine-tuned checkpoint."""
    images: str | tuple[str, ...]
    """Images, folders or quoted globs ('pairs/*.source.png'): sources of the kind that the model is used on."""
    save_to: Path
    """Where to write the statistics: a .safetensors file."""
    count: int | None = None
    """Use so many of the images, evenly spread over the sorted list. Default: all."""
    size: int | None = None
    """Square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    timesteps: tuple[float, ...] = ()
    """Only these of the trained timesteps. Default: all of them, weighted by their probability."""
    probes: int | None = None
    """Random directions of the output per image and timestep. Default: 4 for fewer than 16 images, else 1."""
    seed: int = 0
    """Of bridge noise, probes and sketches."""
    dense_up_to: int = DENSE_UP_TO
    """Layer sides up to this width keep their whole second moment; wider ones a sketch."""
    sketch_rank: int = SKETCH_RANK
    """Columns of the sketch; 0 keeps the diagonal alone."""
    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda or cuda:N."""
    torch_dtype: Literal["float", "bf16"] = "bf16"
    """Precision that the networks run in; sums are fp32."""
    config_path: Path | None = None
    """LBM's config.yaml, for a checkpoint that has none beside it or in it."""
