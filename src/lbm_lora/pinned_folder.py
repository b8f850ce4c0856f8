"""A folder that is known again: while it is held open, no other one gets its device and inode."""

import os
import weakref
from contextlib import suppress
from pathlib import Path

from lbm_lora.regular_file import identity_of


class PinnedFolder:
    """The folder that is at a path now; it is held open for as long as this object lives.

    The inode of a folder that is removed would soon be another one's, and the device of a disk that is taken out too.

    Attributes:
        came_late: whether it may have been moved to the path after the command began, before anybody looked there.
    """

    def __init__(self, path: Path, *, came_late: bool = False) -> None:
        self.came_late = came_late
        self._identity = identity_of(path)
        with suppress(OSError, ValueError):  # nothing is there; or Windows, which opens no folders
            inside = f"{path}{os.sep}."  # so that a disk which is mounted at the first look is mounted now
            descriptor = os.open(inside, getattr(os, "O_PATH", os.O_RDONLY))
            weakref.finalize(self, os.close, descriptor)
            found = os.fstat(descriptor)
            self._identity = found.st_dev, found.st_ino

    @property
    def is_missing(self) -> bool:
        """Whether no folder was at the path."""
        return self._identity is None

    def is_at(self, path: Path) -> bool:
        """Return whether a path leads to the folder."""
        return self._identity is not None and identity_of(path) == self._identity
