"""Make WebDataset shards of a folder of pairs: the verb `data pack`."""

from dataclasses import dataclass
from pathlib import Path

from lbm_lora.configs.data_pack import PackConfig
from lbm_lora.errors import ConfigError, Option, need_packages
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards import SHARD_PACKAGES
from lbm_lora.shards.samples import Skipped
from lbm_lora.training.data.index import check_corrupt, make_index
from lbm_lora.training.data.open_data import find_pairs
from lbm_lora.training.data.pairs import Keys


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """Written shards."""

    shards: tuple[Path, ...]
    pattern: str
    """All shards as one text, for `train_shards`."""
    pairs: int
    masks: int
    """Pairs with a mask."""
    nbytes: int
    skipped: tuple[Skipped, ...]
    """Pairs that were left out."""
    source_key: str
    """Key for training and `data check`, like the next two."""
    target_key: str
    mask_key: str | None
    """None: there are no masks."""


def run(config: PackConfig, progress: Progress = SILENT) -> PackResult:
    """Make the shards.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        ConfigError: a limit below 1.
        DataError: the folder holds no pairs, too many of them are corrupt, or two names become the same.
        OutputError: the folder for the shards is not empty, or cannot be written.
    """
    need_packages("writing shards", SHARD_PACKAGES, "train")
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
        source_key=keys.source,
        target_key=keys.target,
        mask_key=keys.mask if index.masks else None,
    )
