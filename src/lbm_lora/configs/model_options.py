"""The options of a model with LoRAs, which images and shards share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Checkpoint, File, Lora, Named, Scale, Seed, Share, Size, Steps
from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import ConfigError, Option


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of the model with its LoRAs, and of the translation."""

    base_model_path: Checkpoint | None = None
    """Checkpoint that the LoRAs were made for, or any LBM checkpoint; may be user/repo on the hub. If it does not
    exist and --backbone_signature is given, the exact base is made there."""
    lora_path: tuple[Lora, ...] = ()
    """LoRAs, all applied together: files, or user/repo on the hub. Default: the checkpoint as it is."""
    lora_scale: tuple[Scale, ...] = (1.0,)
    """Scale of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative. By layer:
    0.8,down_blocks=0.5,attn1=0 is 0.8, but 0.5 where down_blocks matches a name, and 0 where attn1 does (the last match
    counts). A pattern is part of a name, a glob, or re:REGEX."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the earlier
    implementation, else file."""
    crop: Annotated[bool, ADVANCED] = False
    """Crop the attn2 keys and values of a LoRA made for SDXL to their first columns, as the exact base does. Default:
    leave them out, because an LBM's attn2 sees the image, not text."""
    num_inference_steps: Steps = 1
    """Calls of the denoiser per image. Published LBMs are trained for 1, 2 and 4."""
    seed: Seed = 0
    """Seed for the noise between steps. An image's result depends on the seed alone, not on other images in the run."""
    size: Size | None = None
    """Work at this size: the square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    keep_detail: Share = 0.0
    """Put this share of the source's fine detail into the result: 0 leaves it as the model makes it, 1 replaces all of
    the result's detail."""
    match_color: Share = 0.0
    """Move the result's colours to the source's by this share: 1 gives each channel the mean and spread that it has in
    the source."""
    mode: Annotated[Literal["fused", "live"], ADVANCED] = "fused"
    """Add the LoRAs to the weights once (fused: steps cost nothing extra), or compute them in every step (live)."""
    device: Annotated[str, Named("DEVICE")] = "auto"
    """Run on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps (untested)."""
    torch_dtype: Literal["float", "fp16", "bf16"] = "bf16"
    """Run the networks in this precision."""
    sample_posterior: Annotated[bool, ADVANCED] = False
    """Sample the VAE's posterior, as LBM's own inference does, instead of taking its mean."""
    vae_tiling: Annotated[Literal["auto", "on", "off"], ADVANCED] = "auto"
    """Decode in overlapping tiles, which takes less memory. auto: if a side has more than 1024 pixels."""
    attention_only: Annotated[bool, ADVANCED] = False
    """Apply only the part of the LoRAs whose keys contain attn1.to or attn2.to."""
    allow_other_base: Annotated[bool, ADVANCED] = False
    """Continue even if a LoRA was made from another base."""
    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Continue even if keys of a LoRA match nothing in the model."""
    config_path: Annotated[File | None, ADVANCED] = None
    """Read LBM's config.yaml from here, for a checkpoint that has none in it or next to it."""
    backbone_signature: Annotated[str | None, Named("BACKBONE"), ADVANCED] = None
    """Hub id, folder or file of the backbone. Only used if --base_model_path does not exist."""

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
        """Files of the model and the LoRAs, which must not be overwritten."""
        return [path for path in (self.base_model_path, self.config_path, *self.lora_path) if path is not None]
