"""Open the pairs of one split from the keys of a training file: WebDataset shards or a plain folder.

A folder, or folders below it, has one of two layouts. By name: `NAME.source.png`, `NAME.target.png` and `NAME.mask.png`
next to each other. By folder: `source/NAME.png`, `target/NAME.png` and `mask/NAME.png`. The words come from the keys
(`source.jpg` -> `source`), any readable extension works, and other files are ignored.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lbm_lora.errors import ConfigError, DataError, need_packages
from lbm_lora.files import check_regular
from lbm_lora.imaging.image_file import readable_extensions
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards import SHARD_PACKAGES
from lbm_lora.shards.samples import Found, Part, said_of
from lbm_lora.training.data.dataset import PairDataset
from lbm_lora.training.data.index import PairIndex, make_index
from lbm_lora.training.data.pairs import Keys
from lbm_lora.training.data.sample import Preparation
from lbm_lora.training.settings.data_keys import DataSettings

Split = Literal["train", "validation"]

SHARD_NAMES = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz")
"""How the names of shards end, for who names their folder."""


def open_data(settings: DataSettings, split: Split, *, seed: int, progress: Progress = SILENT) -> PairDataset:
    """Open the pairs of one split: download remote ones, list them, and read their headers.

    Training pairs are augmented according to the settings. Validation pairs are only stretched to the most probable
    size, so that they are the same in every run.

    Args:
        settings: data settings of a training file.
        seed: seed for sizes and augmentations.

    Raises:
        ConfigError: the split has no data, or data must be copied but there is no `cache_dir`.
        DataError: the data cannot be read, holds no pairs, or more than `max_corrupt` of them are corrupt.
        MissingExtraError: the data is in shards and a package that reads them is not installed.
    """
    where, index = _indexed(settings, split, progress)
    if index.skipped:
        progress.note(f"{where}: {said_of(index.skipped, len(index) + len(index.skipped))}.")
    return PairDataset(index, _preparation(settings, split, seed), where=where, max_corrupt=settings.max_corrupt)


def find_pairs(folder: Path, keys: Keys) -> list[Found]:
    """Return the parts found for each name, complete or not, sorted by name.

    Raises:
        DataError: the folder does not exist, or no name in it fits either layout.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give a folder of pairs, or WebDataset shards.")
    roles = [key.lower().rpartition(".")[0] for key in (keys.source, keys.target, keys.mask) if key]
    by_folder = all(roles[:2]) and all((folder / role).is_dir() for role in roles[:2])
    named = _by_folder(folder, roles) if by_folder else _by_name(folder, roles)
    parts: dict[str, dict[str, Part]] = {}
    problems: dict[str, str] = {}
    for key, part, path in named:
        try:
            nbytes = check_regular(path)
        except OSError as error:  # a link to nothing, or a FIFO, whose opening would wait for ever
            nbytes = 0
            problems[key] = f"{path.name} cannot be read: {error.strerror}"
        parts.setdefault(key, {})[part] = Part(path, 0, nbytes)
    if not parts:
        shards = next((path for path in folder.iterdir() if path.name.endswith(SHARD_NAMES)), None)
        if shards is not None:
            raise DataError(f"{folder} holds shards, such as {shards.name}, and no pairs. Give them as train_shards.")
        source, target = (f"{role}." if role else "" for role in roles[:2])
        raise DataError(
            f"{folder} holds no pairs: neither NAME.{source}png next to NAME.{target}png, nor folders "
            f"{roles[0] or 'source'}/ and {roles[1] or 'target'}/ with images of the same names."
        )
    return [Found(key, parts[key], problems.get(key, "")) for key in sorted(parts)]


def _preparation(settings: DataSettings, split: Split, seed: int) -> Preparation:
    """Return how the pairs are resized."""
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
    """Return the name of a split for error messages, and its index."""
    shards = settings.train_shards if split == "train" else settings.validation_shards
    folder = settings.train_folder if split == "train" else settings.validation_folder
    keys = Keys(source=settings.source_key, target=settings.target_key, mask=settings.mask_key)
    if folder is not None:
        found = find_pairs(folder, keys)
        progress.start(len(found), f"reading {folder.name}")
        return str(folder), make_index(found, keys, progress)
    if shards is None:
        raise ConfigError(f"there are no {split} pairs. Set {split}_shards or {split}_folder.")
    where = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"
    return where, make_index(_in_shards(settings, shards, progress), keys)


def _in_shards(settings: DataSettings, patterns: tuple[str, ...], progress: Progress) -> Iterator[Found]:
    need_packages("reading shards", SHARD_PACKAGES, "train")
    from lbm_lora.shards.fetch import local_shards
    from lbm_lora.shards.tar import expand_shards, read_shard

    shards = expand_shards(patterns)
    paths = local_shards(shards, cache_dir=settings.cache_dir, allow_pipe=settings.allow_pipe, progress=progress)
    names = [Path(shard).name for shard in shards]
    if len(set(names)) < len(names):
        names = shards
    progress.start(len(shards), "reading shards")
    for path, name in zip(paths, names, strict=True):
        yield from read_shard(path, name)
        progress.advance()


def _by_folder(folder: Path, roles: list[str]) -> Iterator[tuple[str, str, Path]]:
    for role in roles:
        for path in _images(folder / role):
            key = path.relative_to(folder / role).with_suffix("").as_posix()
            yield key, f"{role}{path.suffix.lower()}", path


def _by_name(folder: Path, roles: list[str]) -> Iterator[tuple[str, str, Path]]:
    for path in _images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        role = next((role for role in roles if role and stem.lower().endswith(f".{role}")), "")
        if role in roles:
            key = stem[: -len(role) - 1] if role else stem
            yield key, f"{role}{path.suffix.lower()}".removeprefix("."), path


def _images(folder: Path) -> Iterator[Path]:
    extensions = readable_extensions()
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in extensions and not hidden and not path.is_dir():
            yield path
