"""Index of a data set: its usable pairs in a fixed order, and the skipped ones.

Files and shards are listed once, before anything is computed. A pair that is incomplete, unreadable or of two shapes is
skipped, and recorded with its name and the reason.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from lbm_lora.errors import DataError
from lbm_lora.imaging.encoded import Size
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.samples import Found, Part, Skipped, complaint
from lbm_lora.training.data.pairs import Keys, Pair, Record, record_of

_ABSENT = (-1, 0, 0)
"""Row of a part that a pair does not have."""


class PairIndex:
    """Usable pairs of a data set in a fixed order, and the skipped ones.

    Numbers are stored in arrays: a million pairs take about 150 MB, and worker processes share them.

    Args:
        records: usable pairs, iterated once.
        skipped: skipped pairs, read after all records.
    """

    def __init__(self, records: Iterable[Record], skipped: Sequence[Skipped] = ()) -> None:
        files: dict[Path, int] = {}
        keys: list[str] = []
        sizes, parts = array("i"), array("q")
        for record in records:
            keys.append(record.key)
            sizes.extend(record.size)
            for part in (record.source, record.target, record.mask):
                parts.extend(_numbers(part, files))
        self.keys = tuple(keys)
        self.skipped = tuple(skipped)
        self.sizes: NDArray[np.int32] = np.array(sizes, dtype=np.int32).reshape(-1, 2)
        """(width, height) of every source image."""
        self._parts: NDArray[np.int64] = np.array(parts, dtype=np.int64).reshape(-1, 3, 3)
        self._files = tuple(files)

    def __len__(self) -> int:
        return len(self.keys)

    def size(self, index: int) -> Size:
        width, height = self.sizes[index].tolist()
        return width, height

    @property
    def masks(self) -> int:
        """Number of pairs with a mask."""
        return int((self._parts[:, 2, 0] >= 0).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all files, or of their members in shards."""
        return int(self._parts[:, :, 2].sum())

    @cached_property
    def digest(self) -> str:
        """XXH3 128-bit digest of all sizes, in pixels and in bytes, in hexadecimal; the same in folders and shards."""
        digest = xxhash.xxh3_128(self.sizes.tobytes())
        digest.update(np.ascontiguousarray(self._parts[:, :, 2]).tobytes())
        return digest.hexdigest()

    def record(self, index: int) -> Record:
        """Return where the bytes of one pair are."""
        source, target, mask = (self._part(row) for row in self._parts[index].tolist())
        assert source is not None, "every pair has one"
        assert target is not None, "every pair has one"
        return Record(key=self.keys[index], source=source, target=target, mask=mask, size=self.size(index))

    def read(self, index: int) -> Pair:
        """Read the bytes of one pair.

        Raises:
            ImageError: a file no longer exists, or is shorter than before.
        """
        record = self.record(index)
        return Pair(
            key=record.key,
            source=record.source.read(),
            target=record.target.read(),
            mask=record.mask.read() if record.mask else None,
            size=record.size,
        )

    def _part(self, row: Sequence[int]) -> Part | None:
        file, offset, nbytes = row
        return None if file < 0 else Part(self._files[file], offset, nbytes)


def make_index(found: Iterable[Found], keys: Keys, progress: Progress = SILENT) -> PairIndex:
    """Build the index of everything that was found; reads the header of each image."""
    skipped: list[Skipped] = []

    def usable() -> Iterator[Record]:
        for item in found:
            made = record_of(item, keys)
            if isinstance(made, Record):
                yield made
            else:
                skipped.append(made)
            progress.advance()

    return PairIndex(usable(), skipped)


def check_corrupt(where: str, skipped: Sequence[Skipped], total: int, max_corrupt: float) -> None:
    """Refuse a data set with too many unusable samples.

    Args:
        where: name of the data set, for error messages.
        total: number of samples found, usable or not.
        max_corrupt: largest share of them that may be corrupt.

    Raises:
        DataError: more are corrupt, or no pair is left.
    """
    if not total:
        raise DataError(f"{where} holds no pairs.")
    said = complaint(where, skipped, total, max_corrupt)
    if said:
        raise DataError(f"{said} `lbm-lora data check` lists them all.")


def _numbers(part: Part | None, files: dict[Path, int]) -> tuple[int, int, int]:
    """Return a part as (number of its file, offset, bytes); a new file gets the next number."""
    return (files.setdefault(part.path, len(files)), part.offset, part.nbytes) if part else _ABSENT
