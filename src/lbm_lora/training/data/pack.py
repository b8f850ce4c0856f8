"""Write pairs into WebDataset shards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lbm_lora.errors import DataError, ImageError, listing
from lbm_lora.files import atomic_folder
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.samples import Part
from lbm_lora.shards.tar import shard_writer
from lbm_lora.training.data.index import PairIndex
from lbm_lora.training.data.pairs import Keys


def shards_of(pairs: PairIndex, folder: Path, *, name: str, max_bytes: int, max_count: int) -> dict[Path, list[int]]:
    """Return the paths of shards `NAME-000000.tar`, ... with the pairs of each.

    Args:
        max_bytes: most bytes of files per shard; a shard holds at least one pair.
        max_count: most pairs per shard.
    """
    parts = enumerate(_cut(pairs, max_bytes, max_count))
    return {folder / f"{name}-{number:06d}.tar": members for number, members in parts}


def write_shards(
    pairs: PairIndex, keys: Keys, shards: Mapping[Path, Sequence[int]], progress: Progress = SILENT
) -> None:
    """Copy the files of pairs, byte for byte, into shards of one folder, which appear once all are written.

    The same pairs give the same bytes: members have neither owner nor time.

    Args:
        pairs: pairs whose parts are separate files.
        keys: keys whose words name the members; each member keeps the extension of its file.
        shards: from `shards_of`; existing ones are replaced.

    Raises:
        DataError: two pairs would have the same name in the shards, where names have no dots.
        ImageError: a file no longer exists, or has changed.
        OutputError: the folder cannot be written.
    """
    names = _names(pairs.keys)
    with atomic_folder(next(iter(shards)).parent) as temporary:
        for shard, members in shards.items():
            with (temporary / shard.name).open("wb") as file, shard_writer(file) as tar:
                for index in members:
                    record = pairs.record(index)
                    parts = ((keys.source, record.source), (keys.target, record.target), (keys.mask, record.mask))
                    held = {_word(key, part): _whole(part) for key, part in parts if key and part}
                    tar.write({"__key__": names[index]} | held)
                    progress.advance()


def pattern_of(shards: Sequence[Path]) -> str:
    """Return the shards as one pattern with braces, for a training file."""
    first, last = shards[0].stem, shards[-1].stem
    if len(shards) == 1:
        return shards[0].as_posix()
    name = first.rpartition("-")[0]
    return (shards[0].parent / f"{name}-{{{first[-6:]}..{last[-6:]}}}.tar").as_posix()


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
