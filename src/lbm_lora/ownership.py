"""Recognise files that lbm-lora wrote, and their kinds, by the marks that nearly all of them carry.

A command may replace a file of the kind that it writes. A mark stands where only its writer puts it: an entry in the
header of a `.safetensors`, EXIF data, a line of its own. So a file of somebody else that mentions lbm-lora is not ours.
"""

import re
import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from lbm_lora.regular_file import check_regular

MARK = "made by lbm-lora"
"""The beginning of all marks but those in JSON."""
RESULT = f"{MARK}: result"
"""An image that a model made of a source."""
SIDE_BY_SIDE = f"{MARK}: side by side"
"""An image that shows a source next to its result."""
COMPARISON = f"{MARK}: comparison"
"""A report's image, which shows the results of several networks."""
SAMPLES = f"{MARK}: samples"
"""An image that shows samples of a training run."""
PICTURES = (RESULT, SIDE_BY_SIDE, COMPARISON, SAMPLES)
SOURCE_COPY = "lbm-lora: copy of an input"
"""A copy of a source next to its result: an image of the user's, not one that a model made."""

TRAINING_STATE = f"{MARK}: training"
"""A file from which a training run goes on."""
REFINEMENT_STATE = f"{MARK}: refinement"
"""Likewise of a refinement."""

MARK_LINE = f"# {MARK}\n"
"""A text of ours: a line of its own, since a text of somebody else may say what we made. A model card, which is there
to be edited, has a mark of its own (`lbm_lora.hub.card`)."""
REPORT_LINE = f"# {MARK}: report\n"
"""A report as text."""
RUN_LINE = f"# {MARK}: configuration of a run\n"
"""The configuration in a training run's folder."""
LIST_MARK = f"({MARK}).\n"
"""A list of layers, whose lines are documented: the end of a comment."""
REPORT_PAGE = f'<meta name="generator" content="{MARK}">'
"""A report as a page."""
INSPECTION_PAGE = f'<meta name="generator" content="{MARK}: inspection">'
"""A page that `inspect` writes."""

MARK_KEY = "lbm_lora_file"
"""Entry, with the kind of file as its value, in JSON and in `.safetensors` headers that have no other of our name."""
BASE, FUSED, TRAINED = "base", "fused checkpoint", "trained checkpoint"
"""Kinds of checkpoints: values of `MARK_KEY`, and the end of the mark in a `.ckpt`."""

_LORAS = (f'"{MARK_KEY}":"LoRA"', '"lbm_lora_format":"', '"lbm_lora_export":"')
_SAVE = re.compile(rb'"lbm_lora_step":"([0-9]*) ?([^"]*)"')
_STATISTICS = '"lbm_lora_statistics":"'
_ANY = re.compile(
    rb'"lbm_lora_[a-z_]+": ?"|"schema": ?"lbm-lora/report/|content="made by lbm-lora[":]'
    rb"|\n# made by lbm-lora\n|made by lbm-lora(: |\)\.\n)"
)
_SEARCHED = 2**16  # bytes at either end of a file
_TIFF = re.compile(rb"II\*\0|MM\0\*")  # the beginning of a TIFF, and of EXIF data
_BLOCKS = 64  # of one image
_SOFTWARE, _ASCII = 0x131, 2  # tag and type
_HEADER = 10**8  # bytes; the format's limit for the header of a `.safetensors`
_TAR_MAGIC = 258  # where a tar header has its magic bytes (POSIX ustar), after the line feed that `_ends` adds


def is_ours(path: Path, *marks: str) -> bool:
    r"""Return whether lbm-lora wrote a file: a mark is near the file's beginning or end.

    One of no bytes is not: somebody may have just begun to write it. Nor is a tar archive, whose members have marks of
    their own.

    Args:
        marks: the marks of the kind of file. One that ends with `\n` is the end of a line; if it also begins with `# `,
            the whole line.
    """
    ends = _ends(path)
    if ends.startswith(b"ustar", _TAR_MAGIC):
        return False
    pictures = [mark for mark in marks if mark in (*PICTURES, SOURCE_COPY)]
    others = [mark for mark in marks if mark not in pictures]
    return any(_sought(mark) in ends for mark in others) or any(_is_picture(path, mark) for mark in pictures)


def of_kind(*marks: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a file is one of ours with one of the marks, for a file plan."""
    return lambda path: is_ours(path, *marks)


def is_any_kind(path: Path) -> bool:
    """Return whether lbm-lora seems to have written a file, for a message: whoever replaces it asks for its kind."""
    ends = _ends(path)
    return _ANY.search(ends) is not None


def is_statistics(path: Path) -> bool:
    """Return whether lbm-lora wrote a file, and it holds statistics."""
    return is_ours(path, _STATISTICS)


def is_trained(path: Path) -> bool:
    """Return whether lbm-lora wrote a file, and it is a checkpoint that was trained completely."""
    return _is_checkpoint(path, TRAINED)


def is_base(path: Path) -> bool:
    """Return whether lbm-lora wrote a file, and it is a base."""
    return _is_checkpoint(path, BASE)


def is_fused(path: Path) -> bool:
    """Return whether lbm-lora wrote a file, and it is a fused checkpoint."""
    return _is_checkpoint(path, FUSED)


def is_lora(path: Path) -> bool:
    """Return whether lbm-lora wrote a file, and it is a LoRA, in any format."""
    return is_ours(path, *_LORAS)


def is_spare_lora(path: Path) -> bool:
    """Return whether it is one that another may replace: none that a training run has saved, perhaps after hours."""
    return is_lora(path) and not is_saved_by_run(path)


def is_saved_by_run(path: Path) -> bool:
    """Return whether a training run has saved a file, or a copy of its bytes."""
    return save_of(path) is not None


def save_of(path: Path) -> tuple[int, str] | None:
    """Return when a training run has saved a file, or the LoRA that it is a twin of; None if none has.

    Returns:
        The step, and the digest of the part of the run (see `lbm_lora.training.checkpoint.TrainState`).
    """
    found = _SAVE.search(_header(path))
    return None if found is None else (int(found[1] or b"0"), found[2].decode(errors="replace"))


def has_factors_of_peft(path: Path) -> bool:
    """Return whether a file has PEFT's names for its factors, so that a configuration beside it applies."""
    return b".lora_A." in _header(path) + _ends(path)


def _header(path: Path) -> bytes:
    """Return the whole header of a safetensors file of any name; empty if the file is another one, or unreadable."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if size <= _HEADER else b""
            return header if header.startswith(b"{") else b""
    except OSError:
        return b""


def _is_checkpoint(path: Path, kind: str) -> bool:
    """Return whether a file is a checkpoint of ours: by its header, or by the name of an entry of its zip archive."""
    if path.suffix == ".safetensors":
        return is_ours(path, f'"{MARK_KEY}":"{kind}"')
    try:
        check_regular(path)
        with ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == f"{MARK}: {kind}" for name in archive.namelist())
    except (OSError, BadZipFile, ValueError, NotImplementedError):
        return False


def _is_picture(path: Path, mark: str) -> bool:
    """Return whether a mark is an image's Software tag (EXIF, TIFF), a GIF's comment, or the text after a BMP."""
    value = f"{mark}\0".encode()
    try:
        check_regular(path)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            starts = dict.fromkeys((0, max(0, size - _SEARCHED)))
            parts = {start: _read_at(file, start, _SEARCHED) for start in starts}
            if parts[0].startswith(b"BM"):
                return parts[max(starts)].endswith(b"\0" + value)
            if parts[0].startswith(b"GIF8"):  # a comment begins with its length
                return any(bytes([len(mark)]) + value in part for part in parts.values())
            blocks = (start + found.start() for start, part in parts.items() for found in _TIFF.finditer(part))
            return any(_has_software(file, block, value) for block in islice(blocks, _BLOCKS))
    except OSError:
        return False


def _has_software(file: BinaryIO, block: int, value: bytes) -> bool:
    """Return whether the first directory of a TIFF block has a value as its Software tag (TIFF 6.0, section 2)."""
    order = "<" if _read_at(file, block, 1) == b"I" else ">"
    try:
        (directory,) = struct.unpack(f"{order}I", _read_at(file, block + 4, 4))
        (count,) = struct.unpack(f"{order}H", _read_at(file, block + directory, 2))
        entries = _read_at(file, block + directory + 2, 12 * count)
        for tag, kind, length, place in struct.iter_unpack(f"{order}HHII", entries):
            if (tag, kind, length) == (_SOFTWARE, _ASCII, len(value)):
                return _read_at(file, block + place, length) == value
    except struct.error:  # the block is cut, or none
        return False
    return False


def _read_at(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _sought(mark: str) -> bytes:
    """Return the bytes of a mark; if it begins a line, with the end of the line before."""
    return (f"\n{mark}" if mark.startswith("# ") else mark).encode()


def _ends(path: Path) -> bytes:
    """Return the bytes at either end of a file, with `\\n` before them and at the end of lines.

    Returns:
        Empty if the file is missing or unreadable.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            ends = file.read(_SEARCHED)
            file.seek(max(0, size - _SEARCHED))
            ends += file.read(_SEARCHED)
    except OSError:
        return b""
    return b"\n" + ends.replace(b"\r\n", b"\n") + b"\n"
