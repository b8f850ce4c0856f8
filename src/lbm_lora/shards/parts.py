"""Where the bytes of a sample lie, and which of its parts is meant by a key."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.errors import ImageError, listing
from lbm_lora.imaging.files import readable_extensions


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file: a whole picture file, or a member of a tar."""

    path: Path
    offset: int
    size: int

    def read(self, limit: int | None = None) -> bytes:
        """The bytes, or the first `limit` of them.

        Raises:
            ImageError: the file is gone or has become shorter.
        """
        wanted = self.size if limit is None else min(limit, self.size)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(wanted)
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read: {error.strerror}") from None
        if len(data) < wanted:
            raise ImageError(f"{self.path} ends at byte {self.offset + len(data)}, within a picture")
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
