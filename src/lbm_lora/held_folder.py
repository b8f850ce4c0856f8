"""Folders that one writer holds: a training run, a folder of results."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.atomic import made_folder
from lbm_lora.pinned_folder import PinnedFolder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE = 10.0
"""Seconds to wait for a folder that somebody holds."""


@dataclass
class HeldFolder:
    """A folder that its writer holds.

    Attributes:
        pinned: what the folder is known by.
        lock: descriptor of the folder; None: the system has no locks.
    """

    path: Path
    pinned: PinnedFolder
    lock: int | None

    def keep(self) -> bool:
        """Make and hold the folder again if it is gone; return whether the folder at the path is the held one."""
        if self.pinned.is_at(self.path) or self.path.exists():
            return self.pinned.is_at(self.path)
        with made_folder(self.path):
            self.pinned = PinnedFolder(self.path)
            lock = None if self.lock is None else os.open(self.path, os.O_RDONLY)
        if self.lock is None or lock is None:
            return True
        os.close(self.lock)
        self.lock = lock
        return _try_lock(lock)


@contextmanager
def held_folder(folder: Path) -> Generator[HeldFolder | None]:
    """Create a folder and hold it for one writer; yields None if somebody else holds it.

    The processes that load data for a killed writer hold it a little longer, so it is waited for, at most `PATIENCE`.

    Raises:
        OutputError: it cannot be created.
    """
    with made_folder(folder):
        pinned = PinnedFolder(folder)
        if fcntl is None:
            yield HeldFolder(folder, pinned, None)
            return
        lock = os.open(folder, os.O_RDONLY)
        held = HeldFolder(folder, pinned, lock)
        try:
            yield held if _try_lock(lock) else None
        finally:
            if held.lock is not None:
                os.close(held.lock)


def _try_lock(descriptor: int) -> bool:
    """Lock an open folder; return False if another process still holds it after `PATIENCE` seconds."""
    assert fcntl is not None
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        except OSError:  # a disk without locks
            return True
        else:
            return True
