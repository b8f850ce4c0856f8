"""Where an output can be: in a folder that can be written to, and in the place of regular files alone."""

import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from lbm_lora.errors import OutputError


def check_replaceable(path: Path) -> None:
    """Refuse what a file cannot be renamed to, or should not.

    Raises:
        OutputError: `path` is a folder, a device, or a link to nothing.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Give the path of a file.")
    if path.exists() and not S_ISREG(path.stat().st_mode):
        raise OutputError(f"{path} is not a regular file. Choose another output path.")
    check_link(path)


def check_link(path: Path) -> None:
    """Refuse a link to nothing: it belongs to somebody, and where its file would go is not known.

    Raises:
        OutputError: `path` is one.
    """
    if path.is_symlink() and not path.exists():
        raise OutputError(
            f"{path} is a link to {path.readlink()}, where no file is. Remove the link, or choose another output path."
        )


def check_writable(folder: Path, name: str) -> None:
    """Refuse an output whose folder is a file, or cannot be written to.

    Args:
        folder: need not exist yet.
        name: what the message calls the output.

    Raises:
        OutputError: in both cases.
    """
    for one in (folder, *folder.parents):
        try:
            mode = one.stat().st_mode
        except (OSError, ValueError):
            continue
        if not S_ISDIR(mode):
            raise OutputError(f"{name} would be in {one}, which is a file. Choose another path.")
        if not os.access(one, os.W_OK | os.X_OK):
            raise OutputError(f"{name} cannot be written: {one} is read-only for this user. Choose another path.")
        return
