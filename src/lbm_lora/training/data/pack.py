"""Write pairs into WebDataset shards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from lbm_lora.atomic import atomic_folder
from lbm_lora.errors import DataError, ImageError, listing
from lbm_lora.progress import SILENT, Progress
from lbm_lora.replacement import sync
from lbm_lora.shards.samples import Part
from lbm_lora.shards.tar import shard_writer
from lbm_lora.training.data.index import PairIndex
from lbm_lora.training.data.pairs import Keys, Record


def shards_of(pairs: PairIndex, folder: Path, *, name: str, max_bytes: int, max_count: int) -> dict[Path, list[int]]:
    """Return the paths of shards `NAME-000000.tar`, ... with the pairs of each.

    Args:
        max_bytes: most bytes of files per shard; a shard holds at least one pair.
        max_count: most pairs per shard.
    """
    parts = enumerate(_cut(pairs, max_bytes, max_count))
    return {folder / f"{name}-{number:06d}.tar": members for number, members in parts}


def write_shards(
    pairs: PairIndex,
    keys: Keys,
    shards: Mapping[Path, Sequence[int]],
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Copy the files of pairs, byte for byte, into shards of one folder.

    The same pairs give the same bytes: members have neither owner nor time. The folder appears once all is written.

    Args:
        pairs: pairs whose parts are separate files.
        keys: keys whose words name the members; each member keeps the extension of its file.
        shards: from `shards_of`. Their folder may exist if it is empty.
        overwrite: whether it may hold files, of which those of the same names are replaced.

    Raises:
        DataError: two pairs would have the same name in the shards, where names have no dots.
        ImageError: a file no longer exists, or has changed.
        OutputError: the folder is not empty, or cannot be written.
    """
    names = _names(pairs.keys)
    with atomic_folder(next(iter(shards)).parent, overwrite=overwrite) as temporary:
        for shard, members in shards.items():
            path = temporary / shard.name
            with path.open("wb") as file:
                _write_shard(file, [(names[index], pairs.record(index)) for index in members], keys, progress)
            sync(path)


def pattern_of(shards: Sequence[Path]) -> str:
    """Return the shards as one pattern with braces, for a training file."""
    first, last = shards[0].stem, shards[-1].stem
    if len(shards) == 1:
        return shards[0].as_posix()
    name = first.rpartition("-")[0]
    return (shards[0].parent / f"{name}-{{{first[-6:]}..{last[-6:]}}}.tar").as_posix()


def _write_shard(file: BinaryIO, members: Sequence[tuple[str, Record]], keys: Keys, progress: Progress) -> None:
    """Write one tar file."""
    with shard_writer(file) as tar:
        for name, record in members:
            parts = ((keys.source, record.source), (keys.target, record.target), (keys.mask, record.mask))
            tar.write({"__key__": name} | {_word(key, part): _whole(part) for key, part in parts if key and part})
            progress.advance()


def _whole(part: Part) -> bytes:
    """Read a file.

    Raises:
        ImageError: its size has changed since it was listed.
    """
    data, nbytes = part.read(), part.path.stat().st_size
    if nbytes != part.nbytes:
        raise ImageError(
            f"{part.path} has changed since it was listed: {part.nbytes:,} bytes then, {nbytes:,} now. Run the command "
            "again."
        )
    return data


def _word(key: str, part: Part) -> str:
    """Return the suffix of a part after its sample's name: the word of the key with the extension of the file."""
    word = key.lower().rpartition(".")[0]
    return f"{word}{part.path.suffix.lower()}".removeprefix(".")


def _names(keys: Sequence[str]) -> list[str]:
    """Return names without dots: in a shard the first dot ends the name."""
    names = [key.replace(".", "_") for key in keys]
    counts = Counter(names)
    twice = sorted(key for key, name in zip(keys, names, strict=True) if counts[name] > 1)
    if twice:
        raise DataError(f"names in shards cannot have dots, and without dots these are the same: {listing(twice)}.")
    return names


def _cut(pairs: PairIndex, max_bytes: int, max_count: int) -> Iterator[list[int]]:
    """Yield the pairs of each shard."""
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
