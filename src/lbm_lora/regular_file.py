"""Look at a path before it is opened. Only regular files are read: a FIFO can block forever, a device may never end."""

import errno
import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple

import xxhash

ENDS = 2**16
"""Bytes at either end of a file that `ends_digest` reads."""


class Version(NamedTuple):
    """Tells a file from a later one at the same path. The inode alone does not: it is reused once a file is removed."""

    device: int
    inode: int
    nbytes: int
    changed_ns: int
    """Time of change, in nanoseconds since the epoch."""

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode

    @property
    def content(self) -> tuple[int, int]:
        """Size and time: the same after a rename, also on another disk."""
        return self.nbytes, self.changed_ns


def check_regular(path: Path) -> int:
    """Return the size of a regular file, in bytes; links are followed.

    Raises:
        OSError: it is missing, a folder, or something else, such as a FIFO or a device.
    """
    status = path.stat()
    if S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not S_ISREG(status.st_mode):
        raise OSError(errno.ENXIO, "Not a regular file", str(path))
    return status.st_size


def file_digest(path: Path) -> str:
    """Return the XXH3 128-bit digest of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    check_regular(path)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def ends_digest(path: Path) -> str:
    """Return the XXH3 128-bit digest of a file's first and last 64 KiB, in hexadecimal.

    Raises:
        OSError: it is not a regular file, or cannot be read.
    """
    nbytes = check_regular(path)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(0, nbytes - ENDS))
        digest.update(file.read(ENDS))
    return digest.hexdigest()


def status_of(path: Path) -> os.stat_result | None:
    """Return what the system says about a path; None if nothing is there, or the name is invalid."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def link_status(path: Path) -> os.stat_result | None:
    """Return the same of a link itself, where the path is one."""
    try:
        return path.lstat()
    except (OSError, ValueError):
        return None


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what is at a path; None if nothing is there."""
    found = status_of(path)
    return None if found is None else (found.st_dev, found.st_ino)


def version_of(path: Path) -> Version | None:
    """Return what tells one content of a path from the next; None if nothing is there."""
    found = status_of(path)
    return None if found is None else version_in(found)


def version_in(status: os.stat_result) -> Version:
    """Return the same of a status, such as that of an open file."""
    return Version(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file or folder that is there."""
    first, second = status_of(one), status_of(other)
    return first is not None and second is not None and os.path.samestat(first, second)
