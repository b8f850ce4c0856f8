"""The folder of temporary files: TMPDIR, or where the system has it."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lbm_lora.errors import OutputError

PREFIX = "lbm-lora-"
"""Prefix of the names in it."""


def temp_root() -> Path:
    """Return the folder of temporary files.

    Raises:
        OutputError: none can be written to.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise OutputError("no folder for temporary files can be written to. Set TMPDIR to a writable folder.") from None


@contextmanager
def temp_folder() -> Generator[Path]:
    """Yield a new folder for temporary files, which is removed at the end.

    Raises:
        OutputError: none can be created.
    """
    root = temp_root()
    try:
        folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=root)
    except OSError as error:
        raise OutputError(
            f"{root}, the folder of temporary files, cannot be written to: {error.strerror}. Set TMPDIR to another one."
        ) from None
    with folder as path:
        yield Path(path)
