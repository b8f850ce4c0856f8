"""Samples: where the bytes of one lie, which of its parts a key means, and what to say of those that cannot be used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.errors import ImageError, listing
from lbm_lora.imaging.image_file import readable_extensions


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file: an image file from its start to its end, or a member of a tar."""

    path: Path
    offset: int
    nbytes: int

    def read(self, limit: int | None = None) -> bytes:
        """The bytes, or the first `limit` of them.

        Raises:
            ImageError: the file is gone or has become shorter.
        """
        wanted = self.nbytes if limit is None else min(limit, self.nbytes)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(wanted)
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read: {error.strerror}") from None
        if len(data) < wanted:
            raise ImageError(f"{self.path} ends at byte {self.offset + len(data)}, within an image")
        return data


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under one key: `source.png` -> its bytes, `target.png` -> its bytes, ..."""

    key: str
    parts: Mapping[str, Part]
    problem: str = ""
    """Why it cannot be used whatever its parts."""

    def pick(self, wanted: str) -> Part:
        """The part of a key, or else the one part that differs from it in the extension alone.

        Raises:
            ImageError: there is none, or more than one.
        """
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


def complaint(where: str, skipped: Sequence[Skipped], total: int, max_corrupt: float) -> str:
    """What to say of a data set of which too much, or all, cannot be used; empty where it is good enough.

    Args:
        where: the data set.
        total: samples that were found, usable or not.
        max_corrupt: share of them that may be corrupt.
    """
    if not skipped or (len(skipped) <= max_corrupt * total and len(skipped) < total):
        return ""
    return f"{where}: {said_of(skipped, total)}, and max_corrupt is {100 * max_corrupt:g} %."


def said_of(skipped: Sequence[Skipped], total: int) -> str:
    """How many samples cannot be used, and the first of them."""
    share = 100 * len(skipped) / max(total, 1)
    named = listing((f"{item.key} ({item.reason})" for item in skipped), limit=3)
    return f"{len(skipped)} of {total} samples cannot be used ({share:.1f} %): {named}"
