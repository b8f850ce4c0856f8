"""The pairs of a data set: which files are one, whether they belong together, and where their bytes are.

A folder, or folders below it, has one of two layouts. By name: `NAME.source.png`, `NAME.target.png` and `NAME.mask.png`
next to each other. By folder: `source/NAME.png`, `target/NAME.png` and `mask/NAME.png`. The words come from the keys
(`source.jpg` -> `source`), any readable extension works, and other files are ignored.

Files and shards are listed once, before anything is computed; of each image only the header is read, for its size. A
pair that is incomplete, unreadable or of two shapes is skipped, and recorded with its name and the reason.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from lbm_lora.errors import DataError, ImageError
from lbm_lora.files import check_regular
from lbm_lora.imaging.encoded import Size, encoded_size
from lbm_lora.imaging.image_file import readable_extensions
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.samples import Found, Part, Skipped, complaint

SHARD_NAMES = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz")
"""Endings of the names of shards."""
_HEAD = 1 << 16  # bytes; enough for the header of almost every image
_ABSENT = (-1, 0, 0)  # row of a part that a pair does not have


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Which parts of a sample are the source, the target and the mask.

    The extension may differ: `source.jpg` also matches a `source.png` if there is no `source.jpg`.
    """

    source: str = "source.jpg"
    target: str = "target.jpg"
    mask: str | None = None
    mask_optional: bool = False
    """Whether a sample without a mask is used."""


@dataclass(frozen=True, slots=True)
class Record:
    """One usable pair: where its parts are, and the size of the source image, upright, in pixels."""

    key: str
    source: Part
    target: Part
    mask: Part | None
    size: Size

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.source, self.target, self.mask) if part]


class PairIndex:
    """Usable pairs of a data set in a fixed order, and the skipped ones, which are read after all records.

    Numbers are stored in arrays: a million pairs take about 150 MB, and worker processes share them.
    """

    def __init__(self, records: Iterable[Record], skipped: Sequence[Skipped] = ()) -> None:
        files: dict[Path, int] = {}
        keys: list[str] = []
        sizes, parts = array("i"), array("q")
        for record in records:
            keys.append(record.key)
            sizes.extend(record.size)
            for part in (record.source, record.target, record.mask):
                row = (files.setdefault(part.path, len(files)), part.offset, part.nbytes) if part else _ABSENT
                parts.extend(row)
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
        rows = self._parts[index].tolist()
        source, target, mask = (Part(self._files[file], offset, nbytes) for file, offset, nbytes in rows)
        has_mask = rows[2][0] >= 0
        return Record(self.keys[index], source, target, mask if has_mask else None, self.size(index))


def make_index(found: Iterable[Found], keys: Keys, progress: Progress = SILENT) -> PairIndex:
    """Build the index of everything that was found; reads the header of each image."""
    skipped: list[Skipped] = []

    def usable() -> Iterator[Record]:
        for item in found:
            record = _record_of(item, keys)
            if isinstance(record, Record):
                yield record
            else:
                skipped.append(record)
            progress.advance()

    return PairIndex(usable(), skipped)


def _record_of(found: Found, keys: Keys) -> Record | Skipped:
    if found.problem:
        return Skipped(found.key, found.problem)
    try:
        source, target = found.pick(keys.source), found.pick(keys.target)
        word = (keys.mask or "").rpartition(".")[0]
        needs_mask = not keys.mask_optional or any(name.rpartition(".")[0] == word for name in found.parts)
        mask = found.pick(keys.mask) if keys.mask and needs_mask else None
        size = _header_size(source, "source")
        for role, part in (("target", target), ("mask", mask)):
            if part is not None and not same_shape(size, other := _header_size(part, role)):
                reason = f"source {size[0]}x{size[1]}, {role} {other[0]}x{other[1]}: the shapes differ"
                return Skipped(found.key, reason)
    except ImageError as error:
        return Skipped(found.key, str(error))
    return Record(found.key, source, target, mask, size)


def same_shape(one: Size, other: Size) -> bool:
    """Return whether aspect ratios are equal, within the rounding of a side to whole pixels (and 1 %)."""
    short = min(*one, *other)
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= 0.01 + 1 / short


def _header_size(part: Part, role: str) -> Size:
    try:
        try:
            return encoded_size(part.read(_HEAD))
        except ImageError:  # profiles and previews may come first; some formats end with the size
            return encoded_size(part.read())
    except ImageError as error:
        raise ImageError(f"{role}: {error}") from None


def check_corrupt(where: str, skipped: Sequence[Skipped], total: int, max_corrupt: float) -> None:
    """Refuse a data set of `total` samples with too many unusable ones."""
    if not total:
        raise DataError(f"{where} holds no pairs.")
    said = complaint(where, skipped, total, max_corrupt)
    if said:
        raise DataError(f"{said} `lbm-lora data check` lists them all.")


def find_pairs(folder: Path, keys: Keys) -> list[Found]:
    """Return the parts found for each name, complete or not, sorted by name."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give a folder of pairs, or WebDataset shards.")
    roles = [key.lower().rpartition(".")[0] for key in (keys.source, keys.target, keys.mask) if key]
    by_folder = all(roles[:2]) and all((folder / role).is_dir() for role in roles[:2])
    parts: dict[str, dict[str, Part]] = {}
    problems: dict[str, str] = {}
    for key, part, path in _by_folder(folder, roles) if by_folder else _by_name(folder, roles):
        try:
            nbytes = check_regular(path)
        except OSError as error:  # a link to nothing, or a FIFO, whose opening would wait for ever
            nbytes = 0
            problems[key] = f"{path.name} cannot be read: {error.strerror}"
        parts.setdefault(key, {})[part] = Part(path, 0, nbytes)
    if not parts:
        raise _no_pairs(folder, roles)
    return [Found(key, parts[key], problems.get(key, "")) for key in sorted(parts)]


def _no_pairs(folder: Path, roles: Sequence[str]) -> DataError:
    shards = next((path for path in folder.iterdir() if path.name.endswith(SHARD_NAMES)), None)
    if shards is not None:
        return DataError(f"{folder} holds shards, such as {shards.name}, and no pairs. Give them as train_shards.")
    source, target = (f"{role}." if role else "" for role in roles[:2])
    return DataError(
        f"{folder} holds no pairs: neither NAME.{source}png next to NAME.{target}png, nor folders "
        f"{roles[0] or 'source'}/ and {roles[1] or 'target'}/ with images of the same names."
    )


def _by_folder(folder: Path, roles: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    for role in roles:
        for path in _images(folder / role):
            key = path.relative_to(folder / role).with_suffix("").as_posix()
            yield key, f"{role}{path.suffix.lower()}", path


def _by_name(folder: Path, roles: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    for path in _images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        role = next((role for role in roles if role and stem.lower().endswith(f".{role}")), "")
        if role in roles:
            key = stem[: -len(role) - 1] if role else stem
            yield key, f"{role}{path.suffix.lower()}".removeprefix("."), path


def _images(folder: Path) -> Iterator[Path]:
    extensions = readable_extensions()
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in extensions and not hidden and not path.is_dir():
            yield path
