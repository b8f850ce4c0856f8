"""Files that are either whole or not there.

Every output is written under a temporary name in its own folder, synced to the disk and renamed: a reader sees
the old file or the new one, never a part, whatever happens in between.
"""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from lbm_lora.errors import OutputError

_CONTAINERS = (".safetensors", ".ckpt")


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """A temporary path beside `path`, which takes its place on a clean exit and is removed on any other.

    Raises:
        OutputError: the folder cannot be made or written to, or `path` is a folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be made: {error.strerror}. Choose another output path.") from None
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
    """Refuse an output that is also an input, or the twin of one in the other container.

    Raises:
        OutputError: `output` and one of `inputs`, or its twin, are the same file.
    """
    for source in (one for path in inputs for one in _twins(path)):
        if output.exists() and source.exists() and output.samefile(source):
            raise OutputError(f"{output} is an input of this command and would be overwritten. Choose another path.")


def _twins(path: Path) -> tuple[Path, ...]:
    """A checkpoint under both of its names: a base has twins with the same tensors."""
    return (path, *(path.with_suffix(suffix) for suffix in _CONTAINERS)) if path.suffix in _CONTAINERS else (path,)


def _sync(path: Path) -> None:
    """Flush a file's or a folder's entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
