"""Samples: where their bytes are, which part a key selects, and how unusable ones are reported."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import xxhash

from lbm_lora.errors import ImageError, listing
from lbm_lora.files import check_regular
from lbm_lora.imaging.image_file import readable_extensions

ENDS = 2**16
"""Bytes at either end of a file that `ends_digest` reads."""
_END = 4096
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates, and separators of lines and paragraphs."""


class UnreadableError(ImageError):
    """A file that was there cannot be read, which says nothing about what is in it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of bytes in a file: a complete image file, or a member of a tar."""

    path: Path
    offset: int
    nbytes: int

    def read(self, limit: int | None = None) -> bytes:
        """Read the bytes, or the first `limit` of them."""
        wanted = self.nbytes if limit is None else min(limit, self.nbytes)
        try:
            check_regular(self.path)
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(wanted)
        except OSError as error:
            raise UnreadableError(f"{self.path} cannot be read: {error.strerror}") from None
        if len(data) < wanted:
            raise ImageError(f"{self.path} ends at byte {self.offset + len(data)}, within an image")
        return data

    def ends(self) -> bytes:
        """Read the first and the last `_END` bytes, which tell different images of equal size apart."""
        end = min(_END, self.nbytes)
        return self.read(end) + Part(self.path, self.offset + self.nbytes - end, end).read()


@dataclass(frozen=True, slots=True)
class Found:
    """Parts found under one key: `source.png` -> its bytes, `target.png` -> its bytes, ..."""

    key: str
    parts: Mapping[str, Part]
    problem: str = ""
    """Why it cannot be used, whatever its parts."""

    def pick(self, wanted: str) -> Part:
        """Return the part of a key, or else the one part that differs from it only in the extension."""
        wanted = wanted.lower()
        if wanted in self.parts:
            return self.parts[wanted]
        role = wanted.rpartition(".")[0]
        readable = readable_extensions()
        split = {name: name.rpartition(".") for name in self.parts}
        near = [name for name, (word, _, extension) in split.items() if word == role and f".{extension}" in readable]
        if len(near) == 1:
            return self.parts[near[0]]
        if near:
            raise ImageError(f"{' and '.join(sorted(near))}: which one is {wanted}?")
        raise ImageError(f"no {wanted}, only {listing(sorted(self.parts))}")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that cannot be used, and why."""

    key: str
    reason: str


def ends_digest(path: Path) -> str:
    """Return the XXH3 128-bit digest of a file's first and last 64 KiB, in hexadecimal."""
    nbytes = check_regular(path)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(0, nbytes - ENDS))
        digest.update(file.read(ENDS))
    return digest.hexdigest()


def problem_of_name(name: str) -> str:
    """Return why a name is unsafe to unpack; empty if it is safe."""
    if any(unicodedata.category(sign) in _UNSEEN for sign in name):
        return "its name holds control characters, or is not UTF-8"
    path = PureWindowsPath(name)  # takes both kinds of slash
    return "its name leads out of its folder" if path.root or ".." in path.parts else ""


def complaint(where: str, skipped: Sequence[Skipped], total: int, max_corrupt: float) -> str:
    """Return the message for a data set with too many unusable samples, or only such; empty if it is good enough."""
    if not skipped or (len(skipped) <= max_corrupt * total and len(skipped) < total):
        return ""
    return f"{where}: {said_of(skipped, total)}, but max_corrupt is {100 * max_corrupt:g} %."


def said_of(skipped: Sequence[Skipped], total: int) -> str:
    """Return how many samples cannot be used, and the first of them."""
    share = 100 * len(skipped) / max(total, 1)
    named = listing((f"{item.key} ({item.reason})" for item in skipped), limit=3)
    return f"{len(skipped)} of {total} samples cannot be used ({share:.1f} %): {named}"
