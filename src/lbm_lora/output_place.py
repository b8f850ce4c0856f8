"""Where an output may go: into a writable folder, and over nothing but a regular file."""

import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG, S_IWGRP, S_IWOTH, S_IWUSR

from lbm_lora.errors import OutputError
from lbm_lora.missing_path import real_path
from lbm_lora.regular_file import is_same, status_of

_WRITE = S_IWUSR | S_IWGRP | S_IWOTH


def check_replaceable(path: Path) -> None:
    """Refuse a path that a file cannot or should not be renamed to.

    Raises:
        OutputError: `path` is a folder, a device, or a link to nothing.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Give the path of a file.")
    if path.exists() and not S_ISREG(path.stat().st_mode):
        raise OutputError(f"{path} is not a regular file. Choose another output path.")
    check_link(path)


def check_link(path: Path) -> None:
    """Refuse a dangling link: it belongs to somebody, and nobody knows where its file should go.

    Raises:
        OutputError: `path` is one.
    """
    if path.is_symlink() and not path.exists():
        raise OutputError(
            f"{path} is a link to {path.readlink()}, where no file is. Remove the link, or choose another output path."
        )


def check_way(path: Path, name: str) -> None:
    """Refuse a way through a folder that does not exist and back: what is there shows only once the folder is made.

    Args:
        name: what the message calls the output.

    Raises:
        OutputError: there is one.
    """
    for index, part in enumerate(path.parts):
        folder = Path(*path.parts[:index])
        if part == ".." and index and not folder.exists():
            raise OutputError(f"{name} goes through {folder}, which does not exist, and back. Leave both out.")


def is_protected(path: Path, *, names: int = 1) -> bool:
    """Return whether a file is write-protected, and would be lost: it has no other name in its folder.

    A run's last.safetensors is such another name.

    Args:
        names: how many of its names are to be replaced.
    """
    found = status_of(path)
    if found is None or (found.st_mode & _WRITE and os.access(path, os.W_OK)):
        return False
    return found.st_nlink <= names or _names_beside(path) <= names


def _names_beside(path: Path) -> int:
    """Return how many names a file has in its folder, links to it aside; 0 if that cannot be listed."""
    try:
        return sum(is_same(one, path) for one in path.parent.iterdir() if not one.is_symlink())
    except OSError:
        return 0


def check_writable(path: Path, name: str = "") -> None:
    """Refuse an output whose folder is a file or cannot be written to, or whose name is too long for the disk.

    A file that is there is refused if it cannot be replaced, as far as this can be told in advance.

    Args:
        path: neither it nor its folder need exist yet.
        name: what the message calls the output.

    Raises:
        OutputError: in each case; or a folder on the way is a link to nothing.
    """
    name = name or str(path)
    folder = next(one for one in path.parents if status_of(one) is not None or one == one.parent)
    longest = _longest_name(folder)
    missing = path.parents[: len(path.parts) - len(folder.parts) - 1]
    for one in (path, *missing):
        size = len(os.fsencode(one.name))
        if size > longest:
            raise OutputError(
                f"{name} cannot be written: its name has {size} bytes, the disk allows {longest}. Choose a shorter one."
            )
    for one in missing:
        check_link(one)
    found = status_of(folder)
    if found is None or not S_ISDIR(found.st_mode):
        raise OutputError(f"{name} would be in {folder}, which is a file. Choose another path.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{name} cannot be written: {folder} is read-only for this user. Choose another path.")
    here = status_of(path)
    if here is not None and S_ISREG(here.st_mode) and not path.is_symlink():
        _check_unprotected(path, name)


def _check_unprotected(path: Path, name: str) -> None:
    """Refuse a file that is mounted, as containers do, that must not be changed, or that a sticky folder protects."""
    if _is_mounted(path):
        raise OutputError(f"{name} cannot be replaced: it is mounted. Mount its folder, or choose another path.")
    try:
        os.rmdir(path)  # noqa: PTH106 - removes no file, and Linux says whether it could be removed
    except PermissionError as error:
        raise OutputError(f"{name} cannot be replaced: {error.strerror}. Choose another path.") from None
    except OSError:
        return
    path.mkdir()  # an empty folder has taken the file's place just now
    raise OutputError(f"{name} is a folder. Give the path of a file.")


def _is_mounted(path: Path) -> bool:
    """Return whether a file is a mount point; systems other than Linux do not tell."""
    wanted = os.fsencode(real_path(path))
    for sign in b"\\ \t\n":  # the backslash first
        wanted = wanted.replace(bytes([sign]), b"\\%03o" % sign)
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().split(b"\n")
    except OSError:
        return False
    return any(mount.split(b" ")[4:5] == [wanted] for mount in mounts)


def _longest_name(folder: Path) -> int:
    """Return the bytes that a name in a folder may have."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):  # AttributeError: Windows
        return 255


def cannot_write(path: Path, error: Exception) -> OutputError:
    """Return the error for an output that the system refuses."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return OutputError(f"{path} cannot be written: {reason}. Choose another output path.")
