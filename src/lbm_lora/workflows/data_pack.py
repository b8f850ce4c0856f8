"""Make WebDataset shards of a folder of pairs: the verb `data pack`."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path

from lbm_lora.configs.data_pack import PackConfig
from lbm_lora.errors import ConfigError, Option, OutputError, listing, need_packages
from lbm_lora.files import Outputs, written_bytes
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.shards import SHARD_PACKAGES
from lbm_lora.shards.samples import Skipped, problem_of_name
from lbm_lora.training.data.pairs import Keys, PairIndex, check_corrupt, find_pairs, make_index


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
        ConfigError: a limit below 1, or a name that is not a file name.
        DataError: the folder holds no pairs, too many of them are corrupt, or two names become the same.
        OutputError: the folder for the shards is not empty, or cannot be written; or a shard is a file to pack.
    """
    need_packages("writing shards", SHARD_PACKAGES, "train")
    from lbm_lora.training.data.pack import pattern_of, shards_of, write_shards

    _check(config)
    keys = Keys(source=config.source_key, target=config.target_key, mask=config.mask_key, mask_optional=True)
    found = [replace(one, problem=problem_of_name(one.key)) for one in find_pairs(config.folder, keys)]
    progress.start(len(found), "reading headers")
    index = make_index(found, keys, progress)
    check_corrupt(str(config.folder), index.skipped, len(found), config.max_corrupt)
    max_bytes = config.shard_mb * 1_000_000
    members = shards_of(index, config.to, name=config.name, max_bytes=max_bytes, max_count=config.shard_count)
    _check_outputs(index, config.to, members, overwrite=config.overwrite)
    progress.start(len(index), "writing shards")
    write_shards(index, keys, members, progress)
    shards = tuple(members)
    _warn_of_others(config, shards)
    return PackResult(
        shards=shards,
        pattern=pattern_of(shards),
        pairs=len(index),
        masks=index.masks,
        nbytes=written_bytes(*shards),
        skipped=index.skipped,
        source_key=keys.source,
        target_key=keys.target,
        mask_key=keys.mask if index.masks else None,
    )


def _warn_of_others(config: PackConfig, shards: Collection[Path]) -> None:
    """Warn of shards that an earlier, larger data set has left: whoever reads the folder would read them too."""
    others = sorted(set(config.to.glob(f"{escape(config.name)}-[0-9]*.tar")) - {*shards})
    if others:
        warn(f"{config.to} has shards of an earlier data set: {listing(one.name for one in others)}. Remove them.")


def _check(config: PackConfig) -> None:
    if config.shard_mb < 1 or config.shard_count < 1:
        raise ConfigError(Option("shard_mb"), " and ", Option("shard_count"), " must be 1 or more.")
    name = config.name
    if Path(name).name != name or not name.isprintable() or set(name) & set("{}"):
        raise ConfigError(Option("name"), f" {name} must be a file name: no folders, no braces, no control characters.")


def _check_outputs(index: PairIndex, folder: Path, shards: Collection[Path], *, overwrite: bool) -> None:
    """Refuse a folder that holds files, unless they may be replaced, and shards at paths of files to pack."""
    if folder.exists() and not overwrite and (folder.is_file() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} already exists. Give a new or an empty folder, or use ",
            Option("overwrite"),
            " to add to it.",
        )
    outputs = Outputs(overwrite=True)
    for number in range(len(index)):
        outputs.reads(*(part.path for part in index.record(number).parts))
    for shard in shards:
        outputs.writes(shard, "the shard")
    outputs.check()
