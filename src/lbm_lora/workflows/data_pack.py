"""Make WebDataset shards of a folder of pairs: the verb `data pack`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lbm_lora.errors import ConfigError, Option
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.samples import Skipped
from lbm_lora.training.data.index import check_corrupt, make_index
from lbm_lora.training.data.open_data import find_pairs
from lbm_lora.training.data.pairs import Keys


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


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """The shards that were written."""

    shards: tuple[Path, ...]
    pattern: str
    """All of them in one text, as `train_shards` takes it."""
    pairs: int
    masks: int
    """Pairs with a mask."""
    nbytes: int
    skipped: tuple[Skipped, ...]
    """Pairs that are left out."""


def run(config: PackConfig, progress: Progress = SILENT) -> PackResult:
    """Make the shards.

    Raises:
        ConfigError: a limit below 1.
        DataError: the folder holds no pairs, too many of them are corrupt, or two names become the same.
        OutputError: the folder for the shards is not empty, or cannot be written.
    """
    from lbm_lora.training.data.pack import pattern_of, write_shards

    if config.shard_mb < 1 or config.shard_count < 1:
        raise ConfigError(Option("shard_mb"), " and ", Option("shard_count"), " must be 1 or more.")
    keys = Keys(source=config.source_key, target=config.target_key, mask=config.mask_key, mask_optional=True)
    found = find_pairs(config.folder, keys)
    progress.start(len(found), "reading headers")
    index = make_index(found, keys, progress)
    check_corrupt(str(config.folder), index.skipped, len(found), config.max_corrupt)
    progress.start(len(index), "writing shards")
    shards = write_shards(
        index,
        keys,
        config.to,
        name=config.name,
        max_bytes=config.shard_mb * 1_000_000,
        max_count=config.shard_count,
        progress=progress,
    )
    return PackResult(
        shards=tuple(shards),
        pattern=pattern_of(shards),
        pairs=len(index),
        masks=index.masks,
        nbytes=sum(shard.stat().st_size for shard in shards),
        skipped=index.skipped,
    )
