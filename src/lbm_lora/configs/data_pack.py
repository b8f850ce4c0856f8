"""The options of the verb `data pack`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Make WebDataset shards of a folder of pairs; files are copied byte for byte."""

    folder: Positional[Path]
    """Holds NAME.source.png, NAME.target.png, or folders source/ and target/ with equal names; any image format."""
    to: Path
    """Folder for the shards; a new or an empty one."""
    name: str = "pairs"
    """Of the shards: NAME-000000.tar, ..."""
    shard_mb: int = 500
    """Megabytes of files in a shard, at most."""
    shard_count: int = 10_000
    """Pairs in a shard, at most."""
    source_key: str = "source.jpg"
    """Its word, `source`, is what the files or the folder are called by; so for the other keys."""
    target_key: str = "target.jpg"
    mask_key: str = "mask.png"
    """Masks are packed where there are some."""
    max_corrupt: float = 0.05
    """Share of unreadable or incomplete pairs above which nothing is written."""
