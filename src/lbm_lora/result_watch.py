"""Notice that the place of a result is not what it seems.

A folder may have been moved away between two writes, with another one at its path now. On a disk that does not tell
cases apart, the path of a result may be that of an earlier one. A run's own file may have become another run's.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lbm_lora.errors import OutputError
from lbm_lora.late_files import spared
from lbm_lora.output_place import is_protected
from lbm_lora.pinned_folder import PinnedFolder
from lbm_lora.regular_file import Version, ends_digest, identity_of, is_same, version_in, version_of
from lbm_lora.replacement import placed_files

_BINARY = getattr(os, "O_BINARY", 0)  # on Windows


class ResultWatch:
    """Results that one command writes one after another: their files are known by device and inode."""

    def __init__(self) -> None:
        self._folders: dict[Path, PinnedFolder] = {}
        self._files: dict[tuple[int, int], Path] = {}

    def __enter__(self) -> "ResultWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self._folders.clear()

    def before(self, path: Path) -> None:
        """Check a path to which a result is going to be written.

        Raises:
            OutputError: the folder is another one than before, or is gone; or the path is that of an earlier result.
        """
        folder = path.parent
        if folder in self._folders and not self._folders[folder].is_at(folder):
            state = ", and another one is there now" if folder.exists() else ""
            raise OutputError(
                f"{folder} was moved while results were written to it{state}. The results are in the moved one."
            )
        there = identity_of(path)
        first = None if there is None else self._files.get(there)
        if first is not None and first != path and is_same(first, path):  # not a new file with a freed inode
            raise OutputError(f"{first} and {path} are one file: the disk does not tell their names apart. Rename one.")

    def forget(self, folder: Path) -> None:
        """Let the next result go to whatever folder is at a path now."""
        self._folders.pop(folder, None)

    def after(self, path: Path) -> None:
        """Note a result that was written.

        Raises:
            OutputError: as of `before`: the folder was moved meanwhile.
        """
        file = identity_of(path)
        if path.parent in self._folders:
            self.before(path)
        elif path.parent.exists():
            self._folders[path.parent] = PinnedFolder(path.parent)
        if file is not None:
            self._files[file] = path


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
        is_there = version is not None and there is not None and there[2:] == version[2:]
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
        is_alike = there[2:] == known[2:] or (may_be_touched and there[:3] == known[:3])
        return there == known or (is_alike and ends_digest(path) == self._ends)

    def remove(self) -> None:
        """Remove the file if it is this run's, and nobody has protected it meanwhile."""
        if self.is_here() and not is_protected(self.path):
            self.path.unlink()
