"""The flags of the verb `infer`, and which of them go together."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from lbm_lora.errors import ConfigError

_FOR_SHARDS = (
    "source_key", "mask_key", "output_format", "max_corrupt", "cache_dir", "devices", "num_nodes", "strategy",
)  # fmt: skip
_FOR_PICTURES = ("mask", "compare", "tuned_model_path")


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """Translate pictures with an LBM checkpoint and any number of LoRAs."""

    output_path: str
    """File to write, or a folder; several pictures, and shards, need a folder. The format follows the extension."""
    source_image: str | None = None
    """Picture, folder of pictures, or quoted glob ('photos/*.jpg')."""
    source_shards: tuple[str, ...] = ()
    """In its place WebDataset shards: paths, URLs, patterns with {000..009}. Each gives a shard of its name."""
    base_model_path: Path | None = None
    """Checkpoint that the LoRAs were made for. Where it is missing and a backbone is given, it is made there."""
    lora_path: tuple[Path, ...] = ()
    """LoRA files, all applied together. None: the checkpoint as it is."""
    lora_scale: tuple[float, ...] = (1.0,)
    """Factor of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative."""
    num_inference_steps: int = 1
    """Denoiser calls. Published LBMs are trained for 1, 2 and 4."""
    seed: int = 0
    """Of the noise between steps. One seed gives one picture, whatever else is translated with it."""
    size: int | None = None
    """Square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    mask: str | None = None
    """Mask, or a folder with one of each picture's name: white takes the result, black keeps the source."""
    mode: Literal["fused", "live"] = "fused"
    """Add the LoRAs to the weights (fused: steps cost nothing extra), or compute them beside them (live)."""
    compare: bool = False
    """Also write NAME_compare: source | base | with LoRA | tuned side by side."""
    tuned_model_path: Path | None = None
    """The fully fine-tuned checkpoint, for the last column of --compare."""
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
    source_key: str = "source.jpg"
    """In shards: what follows a sample's name. The extension is not decisive: source.png will do too."""
    mask_key: str | None = None
    """In shards: likewise for the mask (mask.png), which then every sample must have."""
    output_format: Literal["png", "jpg", "webp"] = "png"
    """In shards: of the results, which are called NAME.output.png."""
    max_corrupt: float = 0.05
    """In shards: share of unreadable or incomplete samples above which the work ends."""
    cache_dir: Path | None = None
    """Folder that shards from URLs, and compressed ones, are copied into."""
    devices: int = 1
    """For shards: processes on one machine, each on a device of its own."""
    num_nodes: int = 1
    """For shards: machines."""
    strategy: Literal["auto", "ddp"] = "auto"
    """For shards: Lightning's name of how processes are started. auto: ddp where there are several."""


def check_flags(config: InferConfig) -> None:
    """Refuse flags that do not go together.

    Raises:
        ConfigError: names the first of them.
    """
    if (config.source_image is None) == (not config.source_shards):
        raise ConfigError("give --source_image (picture, folder or glob) or --source_shards, one of the two.")
    given = {field.name for field in fields(config) if getattr(config, field.name) != field.default}
    idle = [name for name in (_FOR_PICTURES if config.source_shards else _FOR_SHARDS) if name in given]
    if idle:
        hint = " Masks are members of the shards: --mask_key mask.png." if idle[0] == "mask" else ""
        other = "--source_image" if config.source_shards else "--source_shards"
        raise ConfigError(f"--{idle[0]} is only used with {other}. Leave it out.{hint}")
    if config.tuned_model_path is not None and not config.compare:
        raise ConfigError("--tuned_model_path is only used with --compare. Add it, or leave the path out.")
    if config.devices < 1 or config.num_nodes < 1:
        raise ConfigError("--devices and --num_nodes must be 1 or more.")
    if config.devices > 1 and ":" in config.device:
        raise ConfigError(f"--device {config.device} is one device, and --devices is {config.devices}.")
    if not 0 <= config.max_corrupt <= 1:
        raise ConfigError(f"--max_corrupt {config.max_corrupt:g} is no share. Give a number from 0 to 1.")
