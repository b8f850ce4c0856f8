"""Read WebDataset shards: tar files in which consecutive members of one name form a sample.

Only the tar's headers are read here. The bytes of a sample are later read from their position in the file, in any
order, so that shuffling covers all shards and an interrupted epoch resumes exactly where it stopped.
"""

import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext
from webdataset.writer import TarWriter

from lbm_lora.errors import DataError, listing
from lbm_lora.shards.samples import Found, Part, problem_of_name

_META = re.compile(r"__[^/]*__($|/)")
"""Members reserved by WebDataset."""
Member = tuple[str, str, Part]
"""A file in a shard: name of its sample, name within the sample, bytes."""


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """Expand patterns such as `{000..009}` and `{a,b}` to shards, in order."""
    shards: list[str] = []
    for pattern in patterns:
        try:
            shards += expand_urls(pattern)
        except (ValueError, AssertionError) as error:
            raise DataError(f"shards '{pattern}' cannot be expanded: {error}.") from None
    twice = sorted(shard for shard, count in Counter(shards).items() if count > 1)
    if twice:
        raise DataError(f"shards are named twice: {listing(twice)}. Their samples would count double.")
    return shards


def read_shard(path: Path, name: str) -> Iterator[Found]:
    """Yield the samples of a local, uncompressed shard, in its order."""
    members, end = _members(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(min(end, size))
        block = file.read(tarfile.BLOCKSIZE)
    seen: set[str] = set()
    for key, group in groupby(members, key=lambda member: member[0]):
        found = _found(f"{name}/{key}", list(group), size)
        place = posixpath.normpath(key)  # where it is unpacked: `./a/b` is `a/b`
        yield replace(found, problem="another sample of the shard has its name") if place in seen else found
        seen.add(place)
    # a tar ends with blocks of zeros; tarfile mistakes damage for the end
    if not block or any(block):
        yield Found(name, {}, f"the shard ends or is damaged at byte {min(end, size)}; the rest is lost")


def shard_writer(file: BinaryIO) -> TarWriter:
    """Return a writer of samples into an open file, in the order of the calls.

    The bytes of a shard depend only on its samples: members have neither owner nor time.
    """
    return TarWriter(file, user="", group="", mode=0o644, mtime=0, compress=False, encoder=False, format="PAX_FORMAT")


def _members(path: Path) -> tuple[list[Member], int]:
    members: list[Member] = []
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            try:
                for info in tar:
                    end = info.offset_data + (-(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
                    key, name = base_plus_ext(info.name)
                    if info.isreg() and key is not None and name is not None and not _META.match(info.name):
                        members.append((key, name.lower(), Part(path, info.offset_data, info.size)))
            except (tarfile.TarError, ValueError, OverflowError):  # a size of 2^80 is no place to go on from
                pass  # reported by the caller, who finds no end after the last member
    except tarfile.TarError as error:
        raise DataError(f"{path} is not a tar file: {error}. Shards are tar files, compressed or not.") from None
    return members, end


def _found(key: str, members: Sequence[Member], size: int) -> Found:
    parts = {name: part for _, name, part in members}
    if len(parts) < len(members):
        twice = next(name for name, count in Counter(name for _, name, _ in members).items() if count > 1)
        return Found(key, parts, f"its {twice} is in the shard twice")
    cut = [name for name, part in parts.items() if part.offset + part.nbytes > size]
    return Found(key, parts, f"the shard ends within {cut[0]}" if cut else problem_of_name(members[0][0]))
