"""Notice that a folder of outputs was moved away between two writes, and another one is at its path now."""

from pathlib import Path

from lbm_lora.errors import OutputError
from lbm_lora.regular_file import status_of


class FolderWatch:
    """Folders to which one command writes several files, known by device and inode."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, int]] = {}

    def check(self, folder: Path) -> None:
        """Check that a folder is the one that it was at the first call; call it before and after a write.

        Raises:
            OutputError: it is another one, or is gone.
        """
        found = status_of(folder)
        now = None if found is None else (found.st_dev, found.st_ino)
        if folder in self._seen and now != self._seen[folder]:
            state = "is gone" if now is None else "is another folder now"
            raise OutputError(f"{folder} {state}: it was moved while results were written to it, which are in it.")
        if now is not None:
            self._seen.setdefault(folder, now)
