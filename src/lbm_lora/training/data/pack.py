"""Write pairs into WebDataset shards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lbm_lora.errors import DataError, listing
from lbm_lora.files import atomic_folder
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.samples import Part
from lbm_lora.shards.tar import shard_writer
from lbm_lora.training.data.pairs import Keys, PairIndex


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

    The same pairs give the same bytes: members have neither owner nor time. They are named by the words of the keys,
    with the extension of their file.
    """
    names = _names(pairs.keys)
    with atomic_folder(next(iter(shards)).parent) as temporary:
        for shard, members in shards.items():
            with (temporary / shard.name).open("wb") as file, shard_writer(file) as tar:
                for index in members:
                    record = pairs.record(index)
                    parts = ((keys.source, record.source), (keys.target, record.target), (keys.mask, record.mask))
                    held = {_word(key, part): part.read() for key, part in parts if key and part}
                    tar.write({"__key__": names[index]} | held)
                    progress.advance()


def pattern_of(shards: Sequence[Path]) -> str:
    """Return the shards as one pattern with braces, for a training file."""
    first, last = shards[0].stem, shards[-1].stem
    if len(shards) == 1:
        return shards[0].as_posix()
    name = first.rpartition("-")[0]
    return (shards[0].parent / f"{name}-{{{first[-6:]}..{last[-6:]}}}.tar").as_posix()


def _word(key: str, part: Part) -> str:
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
    members: list[int] = []
    held = 0
    for index in range(len(pairs)):
        nbytes = sum(part.nbytes for part in pairs.record(index).parts)
        if members and (held + nbytes > max_bytes or len(members) >= max_count):
            yield members
            members, held = [], 0
        members.append(index)
        held += nbytes
    yield members
