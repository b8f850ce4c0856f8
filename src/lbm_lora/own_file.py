"""A file that one run writes again and again, and must not mistake for another run's."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lbm_lora.errors import OutputError
from lbm_lora.late_files import spared
from lbm_lora.output_place import is_protected
from lbm_lora.regular_file import Version, ends_digest, version_in, version_of
from lbm_lora.replacement import placed_files

_BINARY = getattr(os, "O_BINARY", 0)  # on Windows


class OwnFile:
    """A file that one run writes again and again, and removes at its end. One of another run in its place stays.

    Also one that comes there while the file is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: Version | None = None
        self._ends = ""

    def note(self) -> None:
        """Note the file that is there as this run's: it was written, read to go on, or may be replaced."""
        self._note(version_of(self.path))

    def _note(self, version: Version | None) -> None:
        """Note a version of the file as this run's; another file may be at the path by now."""
        there = version_of(self.path)
        is_there = version is not None and there is not None and there.content == version.content
        self._known, self._ends = version, ends_digest(self.path) if is_there else ""

    def is_here(self) -> bool:
        """Return whether it is there, as it was noted."""
        return self._is_known(self.path, may_be_touched=False)

    def check(self) -> None:
        """Check that no other file is there.

        Raises:
            OutputError: there is one.
        """
        if version_of(self.path) is not None and not self._is_known(self.path):
            raise OutputError(f"{self.path} is another run's by now, and was kept. Choose another output path.")

    @contextmanager
    def written(self) -> Generator[None]:
        """Write the file inside: another one that is there, or comes there meanwhile, stays.

        Raises:
            OutputError: there is one.
        """
        self.check()
        with spared(self.path, self._is_known), placed_files() as placed:
            yield
        self._note(placed.get(self.path, version_of(self.path)))

    @contextmanager
    def opened(self) -> Generator[BinaryIO]:
        """Yield the file, open to write at its end: another one that comes to its path just now stays.

        Raises:
            OutputError: there is one.
            OSError: it cannot be opened.
        """
        with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_APPEND | _BINARY), "ab", buffering=0) as file:
            if not self._is_version(version_in(os.fstat(file.fileno())), self.path, may_be_touched=False):
                raise OutputError(f"{self.path} was changed by another program, and was kept.")
            yield file
            self._note(version_in(os.fstat(file.fileno())))

    def _is_known(self, path: Path, *, may_be_touched: bool = True) -> bool:
        """Return whether a file is the noted one.

        Args:
            may_be_touched: also if its time is another one, but neither its inode nor its contents.
        """
        there = version_of(path)
        return there is not None and self._is_version(there, path, may_be_touched=may_be_touched)

    def _is_version(self, there: Version, path: Path, *, may_be_touched: bool) -> bool:
        """Return whether the file at a path, of a version, is the noted one.

        Some disks (FUSE) give a file another inode each time that they look it up.
        """
        known = self._known
        if known is None:
            return False
        is_touched = may_be_touched and there._replace(changed_ns=known.changed_ns) == known
        is_alike = there.content == known.content or is_touched
        return there == known or (is_alike and ends_digest(path) == self._ends)

    def remove(self) -> None:
        """Remove the file if it is this run's, and nobody has protected it meanwhile."""
        if self.is_here() and not is_protected(self.path):
            self.path.unlink()
