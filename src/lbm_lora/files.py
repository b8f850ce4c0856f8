"""What a command reads and writes: an output is complete or absent, and it never replaces an input.

    outputs = Outputs(overwrite=overwrite)
    outputs.reads(base, *loras)
    outputs.writes(save_to)
    outputs.check()

A file that lbm-lora made is replaced; any other one needs `overwrite`, and so does a LoRA that was trained for hours.
Each file is written next to its path as `.NAME.xxxx.part`, and renamed once it is complete.
"""

import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import xxhash

from lbm_lora.errors import Option, OutputError, listing

MARK = "made by lbm-lora"
"""The mark of files that have no place for an entry of their own: images, texts, `.ckpt`."""
MARK_KEY = "lbm_lora_file"
"""The mark of JSON and of `.safetensors` headers that have no other entry of ours: a key, with the kind of file."""
BASE, FUSED, TRAINED = "base", "fused checkpoint", "trained checkpoint"
"""Kinds of checkpoints, for the mark."""

_SEARCHED = 2**16  # bytes at either end of a file
_OURS = re.compile(rb'"lbm_lora_[a-z_]+": ?"|"lbm-lora/|made by lbm-lora|lbm-lora: copy of an input')
_TRAINED = re.compile(rb'"lbm_lora_step":|made by lbm-lora: trained|"lbm_lora_file":"trained')
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # only writing fails with these
_WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".json", ".yaml")
_INDEX = ".index.json"


class Outputs:
    """The files of one command.

    Args:
        overwrite: whether files that lbm-lora did not make, or a training made, may be replaced.
        replaces_trained: whether those of a training may be: it goes on in its own folder.
    """

    def __init__(self, *, overwrite: bool = False, replaces_trained: bool = False) -> None:
        self.overwrite, self._replaces_trained = overwrite, replaces_trained
        self._inputs: dict[tuple[int, int], Path] = {}
        self._outputs: list[tuple[Path, str]] = []

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths of all outputs."""
        return tuple(path for path, _ in self._outputs)

    def reads(self, *paths: Path | str | None) -> "Outputs":
        """Note files, folders of a model, or indexes with their shards; what does not exist is left out."""
        for path in paths:
            for file in () if path is None else _files_of(Path(path)):
                identity = identity_of(file)
                if identity is not None:
                    self._inputs.setdefault(identity, file)
        return self

    def writes(self, path: Path, what: str = "") -> "Outputs":
        """Note a file to write.

        Args:
            what: what it is, where the user did not name the path: `the report`.
        """
        self._outputs.append((Path(path), f"{what} {path}".strip()))
        return self

    def then(self, later: "Outputs") -> "Outputs":
        """Note the files of a later step of the same command.

        Files that this step writes do not count as its inputs.
        """
        made = {identity_of(path) for path, _ in self._outputs}
        self._inputs = {**{key: path for key, path in later._inputs.items() if key not in made}, **self._inputs}
        self._outputs += later._outputs
        return self

    def check(self) -> None:
        """Check every output, once, before the work.

        Raises:
            OutputError: one is an input, a folder or written twice, cannot be written, or is not ours to replace.
        """
        seen: set[str] = set()
        foreign: list[tuple[Path, str]] = []
        for path, name in self._outputs:
            absolute = os.path.abspath(path)  # noqa: PTH100 - without links
            if absolute in seen:
                raise OutputError(f"{name} would be written twice. Choose another path.")
            seen.add(absolute)
            if self._is_there(path, name) and not self._is_replaceable(path):
                foreign.append((path, name))
        if foreign:
            (first, name), *others = foreign
            why = "a training run has saved it" if is_trained(first) else "lbm-lora did not write it"
            too = f", and also {listing(name for _, name in others)}" if others else ""
            raise OutputError(
                f"{name} exists, and {why}. Choose another path, or use ",
                Option("overwrite"),
                f" to replace it{too}.",
            )

    def _is_replaceable(self, path: Path) -> bool:
        return self.overwrite or is_ours(path) or (self._replaces_trained and is_trained(path))

    def _is_there(self, path: Path, name: str) -> bool:
        """Check the place of an output, and return whether a file is there already."""
        identity = identity_of(path)
        given = self._inputs.get(identity) if identity else None
        if given is not None:
            is_named = os.path.abspath(given) == os.path.abspath(path)  # noqa: PTH100 - links show
            what = "an input of this command and" if is_named else f"{given}, an input of this command, and"
            raise OutputError(f"{name} is {what} would be overwritten. Choose another path.")
        check_writable(path, name)
        if path.is_dir():
            raise OutputError(f"{name} is a folder. Give the path of a file.")
        return identity is not None


def check_writable(path: Path, name: str = "") -> None:
    """Refuse a file that cannot be written, as far as it shows beforehand; its folder need not exist yet.

    Args:
        name: what the message calls it.

    Raises:
        OutputError: its folder is a file or read-only, or it is write-protected itself.
    """
    name = name or str(path)
    folder = next((folder for folder in path.parents if os.path.lexists(folder)), Path())
    if not folder.is_dir():
        raise OutputError(f"{name} would be in {folder}, which is a file. Choose another path.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{name} cannot be written: {folder} is read-only for this user. Choose another path.")
    try:
        path.stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a name that no file can have
        raise cannot_write(path, error) from None
    if not os.access(path, os.W_OK):
        raise OutputError(f"{name} is write-protected. Choose another path, or make it writable.")


_waiting: ContextVar[dict[Path, Path] | None] = ContextVar("_waiting", default=None)
"""Complete files that wait for others: path -> temporary path."""


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path in the same folder: renamed to `path` on a clean exit, else removed.

    Raises:
        OutputError: the folder cannot be created, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:50]}{path.suffix}.{secrets.token_hex(2)}.part")  # 255 bytes at most
    waiting = None if path.parent.suffix == ".part" else _waiting.get()  # a scratch folder's is read before the end
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if waiting is None:
            temporary.replace(path)
        else:
            if path in waiting:
                waiting[path].unlink()
            waiting[path] = temporary
    except OSError as error:
        is_ours = error.errno in _FULL or str(error.filename) in (str(temporary), str(path.parent))
        if is_ours:
            raise cannot_write(path, error) from None
        raise
    finally:
        if waiting is None or waiting.get(path) != temporary:
            temporary.unlink(missing_ok=True)


@contextmanager
def together() -> Generator[None]:
    """Files that are written inside get their names at its end, one after the other; after an error, none does.

    Until then `current` returns where each of them is. In a nested block, files are renamed when the outermost block
    ends.
    """
    if _waiting.get() is not None:
        yield
        return
    waiting: dict[Path, Path] = {}
    token = _waiting.set(waiting)
    try:
        yield
        for path in [*waiting]:
            waiting[path].replace(path)
            del waiting[path]
    finally:
        _waiting.reset(token)
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)


def current(path: Path) -> Path:
    """Return where the file for a path is: there, or until files get their names together, at its temporary path."""
    return (_waiting.get() or {}).get(path, path)


@contextmanager
def atomic_folder(folder: Path) -> Generator[Path]:
    """Yield a temporary folder next to `folder`: its files are moved there on a clean exit, else removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
    except OSError as error:
        if error.errno in _FULL:
            raise cannot_write(folder, error) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; what is not text, as in a file name of another encoding, becomes `?`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def cannot_write(path: Path, error: Exception) -> OutputError:
    """Return the error for an output that the system refuses."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return OutputError(f"{path} cannot be written: {reason}. Choose another output path.")


def written_bytes(*paths: Path) -> int:
    """Return the size of files that were written, in bytes."""
    return sum(current(path).stat().st_size for path in paths)


def is_ours(path: Path) -> bool:
    """Return whether lbm-lora made a file, and not in a training: its mark is within 64 KiB of either end."""
    ends = _ends(path)
    return _OURS.search(ends) is not None and _TRAINED.search(ends) is None


def is_trained(path: Path) -> bool:
    """Return whether a training run has saved a file."""
    return _TRAINED.search(_ends(path)) is not None


def _ends(path: Path) -> bytes:
    """Return the bytes at either end of a file; empty if it is missing or unreadable."""
    try:
        size = check_regular(path)
        with path.open("rb") as file:
            start = file.read(_SEARCHED)
            file.seek(max(0, size - _SEARCHED))
            return start + b"\n" + file.read(_SEARCHED)
    except OSError:
        return b""


def _files_of(path: Path) -> list[Path]:
    """Return the files that a path stands for: itself, the weights and settings in a folder, the shards of an index."""
    if path.is_dir():
        return [file for file in (*path.glob("*.*"), *path.glob("*/*.*")) if file.suffix in _WEIGHTS]
    if path.name.endswith(_INDEX):
        try:
            return [path, *(path.parent / name for name in json.loads(path.read_text())["weight_map"].values())]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return [path]  # whoever reads the index says what is wrong with it
    return [path]


def check_regular(path: Path) -> int:
    """Return the size of a regular file, in bytes; links are followed. A FIFO can block, a device may never end.

    Raises:
        OSError: it is missing, a folder, or something else, such as a FIFO or a device.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ENXIO, "Not a regular file", str(path))
    return status.st_size


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what is at a path, links followed; None if nothing is there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file or folder that is there."""
    identity = identity_of(one)
    return identity is not None and identity == identity_of(other)


def file_digest(path: Path) -> str:
    """Return the XXH3 128-bit digest of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    check_regular(path)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
