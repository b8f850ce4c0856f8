"""The options of `infer --source_shards`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbm_lora.configs.model_options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class InferShardsConfig(ModelOptions):
    """Translate the images of WebDataset shards with an LBM checkpoint and any number of LoRAs."""

    source_shards: tuple[str, ...]
    """WebDataset shards: paths, URLs, patterns with {000..009}. Each gives a shard of its name."""
    output_path: str
    """Folder for the results."""
    source_key: str = "source.jpg"
    """What follows a sample's name. The extension is not decisive: source.png will do too."""
    mask_key: str | None = None
    """Likewise for the mask (mask.png), which then every sample must have."""
    output_format: Literal["png", "jpg", "webp"] = "png"
    """Format of the results, which are called NAME.output.png."""
    max_corrupt: float = 0.05
    """Share of unreadable or incomplete samples above which the work ends."""
    cache_dir: Path | None = None
    """Folder that shards from URLs, and compressed ones, are copied into."""
    devices: int = 1
    """Processes on one machine, each on a device of its own."""
    num_nodes: int = 1
    """Machines."""
    strategy: Literal["auto", "ddp"] = "auto"
    """Lightning's name of how processes are started. auto: ddp where there are several."""
