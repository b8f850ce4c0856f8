"""Folders that one writer holds: a training run, a folder of results."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.atomic import made_folder

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
        lock: descriptor of the folder; None: the system has no locks.
    """

    path: Path
    lock: int | None

    def keep(self) -> bool:
        """Make and hold the folder again if it is gone; return whether the folder at the path is the held one."""
        if self.lock is None:
            return True
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.lock))
        except FileNotFoundError:
            pass
        with made_folder(self.path):
            lock = os.open(self.path, os.O_RDONLY)
        os.close(self.lock)
        self.lock = lock
        return _is_free(self.lock)


@contextmanager
def held_folder(folder: Path) -> Generator[HeldFolder | None]:
    """Create a folder and hold it for one writer; yields None if somebody else holds it.

    The processes that load data for a killed writer hold it a little longer, so it is waited for, at most `PATIENCE`.

    Raises:
        OutputError: it cannot be created.
    """
    with made_folder(folder):
        if fcntl is None:
            yield HeldFolder(folder, None)
            return
        lock = os.open(folder, os.O_RDONLY)
        held = HeldFolder(folder, lock)
        try:
            yield held if _is_free(lock) else None
        finally:
            if held.lock is not None:
                os.close(held.lock)


def _is_free(descriptor: int) -> bool:
    """Lock an open folder; False if another process still holds it after `PATIENCE` seconds."""
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
