"""The options of `infer --source_shards`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Devices, Folder, Named, Nodes, Share
from lbm_lora.configs.model_options import ModelOptions
from lbm_lora.configs.output_options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class InferShardsConfig(ModelOptions, OutputOptions):
    """Translate the images of WebDataset shards with an LBM checkpoint and any number of LoRAs. An interrupted run
    resumes with the remaining shards."""

    source_shards: Annotated[tuple[str, ...], Named("SHARDS")]
    """WebDataset shards: paths, URLs, patterns with {000..009}. Each gives a shard of the same name."""
    output_path: Annotated[str, Named("FOLDER")]
    """Write the results to this folder."""
    output_format: Literal["png", "jpg", "webp"] = "png"
    """Format of the results, named NAME.output.png and so on."""
    max_corrupt: Share = 0.05
    """Stop if a larger share of the samples than this is unreadable or incomplete."""
    devices: Devices = 1
    """Processes on one machine, each with its own device."""
    source_key: Annotated[str, Named("KEY"), ADVANCED] = "source.jpg"
    """Ending of a sample's source image. Any image extension matches."""
    mask_key: Annotated[str | None, Named("KEY"), ADVANCED] = None
    """Ending of a sample's mask, such as mask.png. Every sample must then have one. Default: no masks."""
    cache_dir: Annotated[Folder | None, ADVANCED] = None
    """Copy shards from URLs, and compressed ones, into this folder."""
    num_nodes: Annotated[Nodes, ADVANCED] = 1
    """Number of machines."""
    strategy: Annotated[Literal["auto", "ddp"], ADVANCED] = "auto"
    """How Lightning starts the processes. auto: ddp if there are several."""
