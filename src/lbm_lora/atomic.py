"""Atomic file writes: an output is complete or absent.

Every output is written under a temporary name in its target folder, synced to disk and renamed: whatever happens
in between, a reader sees the old file or the new one, never a partial one.
"""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from lbm_lora.errors import OutputError

_CONTAINERS = (".safetensors", ".ckpt")  # a base is written in both containers, with the same tensors


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path next to `path`: renamed to `path` on a clean exit, deleted on any other.

    Raises:
        OutputError: the folder cannot be created or written to, or `path` is a folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be created: {error.strerror}. Choose another output path.") from None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Choose another output path.") from None
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder. Give the path of a file.")
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def guard_output(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is also an input, or an input's twin in the other container.

    Raises:
        OutputError: `output` and one of `inputs`, or its twin, are the same file.
    """
    for source in inputs:
        if _same(output, source):
            raise OutputError(f"{output} is an input of this command and would be overwritten. Choose another path.")
        if source.suffix in _CONTAINERS and any(_same(output, source.with_suffix(one)) for one in _CONTAINERS):
            raise OutputError(
                f"{output} is the twin of {source}, an input of this command, and would be overwritten. "
                "Choose another path, or move that file away."
            )


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
