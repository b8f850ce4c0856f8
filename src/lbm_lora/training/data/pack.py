"""Write pairs into WebDataset shards."""

import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lbm_lora.atomic import atomic_path
from lbm_lora.errors import DataError, OutputError, listing
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.samples import Part
from lbm_lora.shards.tar import shard_writer
from lbm_lora.training.data.index import PairIndex
from lbm_lora.training.data.pairs import Keys, Record


def write_shards(
    pairs: PairIndex,
    keys: Keys,
    folder: Path,
    *,
    name: str,
    max_bytes: int,
    max_count: int,
    progress: Progress = SILENT,
) -> list[Path]:
    """Copy the files of pairs, byte for byte, into shards `NAME-000000.tar`, ... of a new folder.

    The same pairs give the same bytes: members have neither owner nor time. The folder appears when all is written.

    Args:
        pairs: whose parts are files of their own.
        keys: whose words the members are called by; each keeps the extension of its file.
        folder: that is made; it may be there, empty.
        max_bytes: of the files of one shard; a shard holds at least one pair.
        max_count: pairs of one shard.

    Returns:
        The shards.

    Raises:
        DataError: two pairs would have the same name in the shards, in which a name has no dots.
        ImageError: a file is gone.
        OutputError: the folder is not empty, or cannot be written.
    """
    names = _names(pairs.keys)
    made: list[Path] = []
    with _new_folder(folder) as temporary:
        for number, members in enumerate(_cut(pairs, max_bytes, max_count)):
            made.append(folder / f"{name}-{number:06d}.tar")
            with atomic_path(temporary / made[-1].name) as path, path.open("wb") as file:
                _write_shard(file, [(names[index], pairs.record(index)) for index in members], keys, progress)
    return made


def pattern_of(shards: Sequence[Path]) -> str:
    """The shards in one text with braces, as a training file takes them."""
    first, last = shards[0].stem, shards[-1].stem
    if len(shards) == 1:
        return shards[0].as_posix()
    name = first.rpartition("-")[0]
    return (shards[0].parent / f"{name}-{{{first[-6:]}..{last[-6:]}}}.tar").as_posix()


def _write_shard(file: BinaryIO, members: Sequence[tuple[str, Record]], keys: Keys, progress: Progress) -> None:
    """One tar file."""
    with shard_writer(file) as tar:
        for name, record in members:
            parts = ((keys.source, record.source), (keys.target, record.target), (keys.mask, record.mask))
            tar.write({"__key__": name} | {_word(key, part): part.read() for key, part in parts if key and part})
            progress.advance()


def _word(key: str, part: Part) -> str:
    """What a part is called behind its sample's name: the word of the key with the extension of the file."""
    word = key.lower().rpartition(".")[0]
    return f"{word}{part.path.suffix.lower()}".removeprefix(".")


def _names(keys: Sequence[str]) -> list[str]:
    """Names without dots: in a shard the first dot ends the name."""
    names = [key.replace(".", "_") for key in keys]
    if len(set(names)) < len(names):
        twice = sorted(key for key, name in zip(keys, names, strict=True) if names.count(name) > 1)
        raise DataError(f"names in shards have no dots, and without them these are the same: {listing(twice)}.")
    return names


def _cut(pairs: PairIndex, max_bytes: int, max_count: int) -> Iterator[list[int]]:
    """The pairs of each shard."""
    members: list[int] = []
    held = 0
    for index in range(len(pairs)):
        record = pairs.record(index)
        nbytes = sum(part.nbytes for part in (record.source, record.target, record.mask) if part)
        if members and (held + nbytes > max_bytes or len(members) >= max_count):
            yield members
            members, held = [], 0
        members.append(index)
        held += nbytes
    yield members


@contextmanager
def _new_folder(folder: Path) -> Generator[Path]:
    """A temporary folder beside `folder`, which takes its place on a clean exit and is removed on any other."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already. Name a new folder, or an empty one.")
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
