"""Stand-in for what Windows does differently with files, as far as lbm-lora is concerned.

Folders cannot be opened, nor locked; a file can be flushed by whoever has it open for writing; a file that is open or
mapped cannot be renamed, replaced or removed; files have no owners, and temporary files have names.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lbm_lora import held_folder, private_folder, replacement
from lbm_lora.model import bridge_pipeline

_MISSING = ("O_DIRECTORY", "O_NOFOLLOW", "O_PATH", "chown", "getxattr", "setxattr", "pathconf")


def _in_use(path: Any) -> bool:
    """Return whether this process has a file open, or mapped."""
    real = os.path.realpath(os.fspath(path))
    opened = {os.path.realpath(one) for one in Path("/proc/self/fd").iterdir()}
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return Path(real).is_file() and (real in opened or f" {real}\n" in mapped)


def _unless_in_use(change: Callable[..., Any]) -> Callable[..., Any]:
    def changed(*paths: Any, **options: Any) -> Any:
        for path in paths:
            if not isinstance(path, int) and _in_use(path):
                raise PermissionError(errno.EACCES, "The process cannot access the file: it is being used", str(path))
        return change(*paths, **options)

    return changed


@contextmanager
def like_windows() -> Generator[None]:
    """Make this process's files behave as on Windows."""
    opening, flushing, linking = os.open, os.fsync, os.link

    def open_file(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opening(path, flags, *rest, **options)

    def flush(descriptor: int) -> None:
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushing(descriptor)

    def link(source: Any, target: Any, *, follow_symlinks: bool = True) -> None:
        if not follow_symlinks:
            raise NotImplementedError("follow_symlinks unavailable on this platform")
        linking(source, target)

    with pytest.MonkeyPatch.context() as patch:
        for module in (private_folder, held_folder):
            patch.setattr(module, "fcntl", None)
        patch.setattr(replacement, "FLUSHABLE", os.O_RDWR)
        patch.setattr(bridge_pipeline, "_FLUSHABLE", os.O_RDWR)
        for name in _MISSING:
            patch.delattr(os, name, raising=False)
        patch.setattr(shutil, "_use_fd_functions", False)
        patch.setattr(tempfile, "TemporaryFile", tempfile.NamedTemporaryFile)
        patch.setattr(os, "open", open_file)
        patch.setattr(os, "fsync", flush)
        patch.setattr(os, "link", link)
        for name in ("replace", "rename", "unlink", "remove"):
            patch.setattr(os, name, _unless_in_use(getattr(os, name)))
        yield
