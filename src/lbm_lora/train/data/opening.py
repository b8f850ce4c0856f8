"""From the keys of a training file to the pairs of one split."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lbm_lora.errors import ConfigError, MissingExtraError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.corrupt import said_of
from lbm_lora.shards.parts import Found
from lbm_lora.train.data.dataset import PairDataset
from lbm_lora.train.data.folders import find_pairs
from lbm_lora.train.data.index import PairIndex, make_index
from lbm_lora.train.data.parts import Keys
from lbm_lora.train.data.prepare import Preparation
from lbm_lora.train.settings.data import DataSettings

Split = Literal["train", "validation"]


def open_data(settings: DataSettings, split: Split, *, seed: int, progress: Progress = SILENT) -> PairDataset:
    """The pairs of one split: fetched where they are remote, listed, and their headers read.

    Training pairs are augmented as the settings say. Validation pairs are stretched to the most probable size and
    nothing else, so that they are the same in every run.

    Args:
        settings: what a training file says about its data.
        seed: of the sizes and augmentations.

    Raises:
        ConfigError: the split has no data, or data that must be copied has no `cache_dir`.
        DataError: the data cannot be read, holds no pairs, or more than `max_corrupt` of them are corrupt.
        MissingExtraError: shards, and WebDataset is not installed.
    """
    where, index = _indexed(settings, split, progress)
    if index.skipped:
        progress.note(f"{where}: {said_of(index.skipped, len(index) + len(index.skipped))}.")
    return PairDataset(index, _preparation(settings, split, seed), where=where, max_corrupt=settings.max_corrupt)


def _preparation(settings: DataSettings, split: Split, seed: int) -> Preparation:
    """How the pairs are brought to size."""
    count = len(settings.image_size)
    training = Preparation(
        image_size=settings.image_size,
        probabilities=settings.image_size_prob or (1 / count,) * count,
        seed=seed,
        aspect_buckets=settings.aspect_buckets,
        flip=settings.flip,
        random_crop=settings.random_crop,
    )
    if split == "train":
        return training
    return replace(training, image_size=(training.main_size,), probabilities=(1.0,), flip=False, random_crop=False)


def _indexed(settings: DataSettings, split: Split, progress: Progress) -> tuple[str, PairIndex]:
    """How a split is called in errors, and its index."""
    shards = settings.train_shards if split == "train" else settings.validation_shards
    folder = settings.train_folder if split == "train" else settings.validation_folder
    keys = Keys(source=settings.source_key, target=settings.target_key, mask=settings.mask_key)
    if folder is not None:
        found = find_pairs(folder, keys)
        progress.start(len(found), f"reading {folder.name}")
        return str(folder), make_index(found, keys, progress)
    if shards is None:
        raise ConfigError(f"there are no {split} pairs. Give {split}_shards or {split}_folder.")
    where = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"
    return where, make_index(_in_shards(settings, shards, progress), keys)


def _in_shards(settings: DataSettings, patterns: tuple[str, ...], progress: Progress) -> Iterator[Found]:
    try:
        from lbm_lora.shards.fetch import local_shards
        from lbm_lora.shards.reading import expand_shards, read_shard
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"shards need the package {error.name}, which is not installed: pip install 'lbm-lora[train]'."
        ) from None
    shards = expand_shards(patterns)
    paths = local_shards(shards, cache_dir=settings.cache_dir, allow_pipe=settings.allow_pipe, progress=progress)
    names = [Path(shard).name for shard in shards]
    if len(set(names)) < len(names):
        names = shards
    progress.start(len(shards), "reading shards")
    for path, name in zip(paths, names, strict=True):
        yield from read_shard(path, name)
        progress.advance()
