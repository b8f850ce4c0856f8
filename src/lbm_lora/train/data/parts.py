"""Where the bytes of a sample lie, before and after it is known to be a pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.errors import ImageError
from lbm_lora.train.data.sample import Size


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


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Which parts of a sample are the source, the target and the mask.

    The extension is not decisive: `source.jpg` also stands for a `source.png` where there is no `source.jpg`.
    """

    source: str = "source.jpg"
    target: str = "target.jpg"
    mask: str | None = None
    mask_optional: bool = False
    """A sample without the mask is used all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One usable pair."""

    key: str
    source: Part
    target: Part
    mask: Part | None
    size: Size
    """Of the source picture, upright."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The bytes of one pair, as its files have them."""

    key: str
    source: bytes
    target: bytes
    mask: bytes | None
    size: Size
    """Of the source picture, upright."""
