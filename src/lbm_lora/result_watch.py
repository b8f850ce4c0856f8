"""Notice that the place of a result is not what it seems.

A folder may have been moved away between two writes, with another one at its path now. On a disk that does not tell
cases apart, the path of a result may be that of an earlier one.
"""

from pathlib import Path

from lbm_lora.errors import OutputError
from lbm_lora.pinned_folder import PinnedFolder
from lbm_lora.regular_file import identity_of, is_same


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
            OutputError: as in `before`: the folder was moved meanwhile.
        """
        file = identity_of(path)
        if path.parent in self._folders:
            self.before(path)
        elif path.parent.exists():
            self._folders[path.parent] = PinnedFolder(path.parent)
        if file is not None:
            self._files[file] = path
