"""The options of the verb `data pack`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, POSITIONAL, Count, Folder, Named, Share
from lbm_lora.configs.output_options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class PackConfig(OutputOptions):
    """Make WebDataset shards of a folder of pairs. Files are copied byte for byte."""

    folder: Annotated[Folder, POSITIONAL]
    """Folder of pairs: NAME.source.png and NAME.target.png, or folders source/ and target/ with equal names; any image
    format."""
    to: Folder
    """Write the shards to this folder, which must be new or empty, unless --overwrite is given."""
    name: Annotated[str, Named("NAME")] = "pairs"
    """Name of the shards: NAME-000000.tar, NAME-000001.tar and so on."""
    shard_mb: Annotated[Count, Named("MB")] = 500
    """Put at most this many megabytes into a shard."""
    shard_count: Count = 10_000
    """Put at most this many pairs into a shard."""
    max_corrupt: Share = 0.05
    """Write nothing if a larger share of the pairs than this is unreadable or incomplete."""
    source_key: Annotated[str, Named("KEY"), ADVANCED] = "source.jpg"
    """Ending of source images. Its word, `source`, is also the name of their folder; any image extension matches."""
    target_key: Annotated[str, Named("KEY"), ADVANCED] = "target.jpg"
    """Ending of target images, likewise."""
    mask_key: Annotated[str, Named("KEY"), ADVANCED] = "mask.png"
    """Ending of masks, likewise. Masks are packed if there are any."""
