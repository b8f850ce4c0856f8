"""Folders that one writer holds: a training run, a folder of results."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lbm_lora.atomic import made_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE = 10.0
"""Seconds to wait for a folder that somebody holds."""


@contextmanager
def held_folder(folder: Path) -> Generator[bool]:
    """Create a folder and hold it for one writer; yields whether nobody else holds it.

    The processes that load data for a killed writer hold it a little longer, so it is waited for, at most `PATIENCE`.

    Raises:
        OutputError: it cannot be created.
    """
    with made_folder(folder):
        if fcntl is None:
            yield True
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            yield _is_free(descriptor)
        finally:
            os.close(descriptor)


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
