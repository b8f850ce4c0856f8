"""The options of a model with LoRAs, which images and shards share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import ConfigError, Option


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What translates, and how."""

    base_model_path: Path | None = None
    """Checkpoint that the LoRAs were made for. Where it is missing and a backbone is given, it is made there."""
    lora_path: tuple[Path, ...] = ()
    """LoRA files, all applied together. None: the checkpoint as it is."""
    lora_scale: tuple[float, ...] = (1.0,)
    """Scale of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative."""
    lora_alpha_is: AlphaIs = "auto"
    """What alpha in a LoRA file means: the rank (scaling 1), or what it says (file). auto: the rank in files of the
    earlier implementation, else what it says."""
    num_inference_steps: int = 1
    """Denoiser calls. Published LBMs are trained for 1, 2 and 4."""
    seed: int = 0
    """Seed for the noise between steps. One seed gives one image, whatever else is translated with it."""
    size: int | None = None
    """Square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    mode: Literal["fused", "live"] = "fused"
    """Add the LoRAs to the weights (fused: steps cost nothing extra), or compute them beside them (live)."""
    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:N or mps (untested)."""
    torch_dtype: Literal["float", "fp16", "bf16"] = "bf16"
    """Precision that the networks run in."""
    sample_posterior: bool = False
    """Sample the VAE's posterior, as LBM's own inference does, instead of taking its mean."""
    vae_tiling: Literal["auto", "on", "off"] = "auto"
    """Decode in overlapping tiles: less memory. auto: where a side is above 1024 pixels."""
    attention_only: bool = False
    """Apply only the part of the LoRAs whose keys contain attn1.to or attn2.to."""
    allow_other_base: bool = False
    """Go on where a LoRA was made from another base."""
    allow_unmatched: bool = False
    """Go on where keys of a LoRA match nothing in the model."""
    config_path: Path | None = None
    """LBM's config.yaml, for a checkpoint that has none beside it or in it."""
    backbone_signature: str | None = None
    """Hub id, folder or file of the backbone; only used where --base_model_path is missing."""

    @property
    def base(self) -> Path:
        """The base checkpoint.

        Raises:
            ConfigError: none is given.
        """
        if self.base_model_path is None:
            raise ConfigError(
                Option("base_model_path"),
                " is missing. Give a base or any LBM checkpoint; `lbm-lora base` makes the exact base of a backbone.",
            )
        return self.base_model_path

    @property
    def input_files(self) -> list[Path]:
        """The files of model and LoRAs, which must not be overwritten."""
        return [path for path in (self.base_model_path, self.config_path, *self.lora_path) if path is not None]
