"""Make the n-th operation of a process that changes a disk fail, as a full or failing disk would, or kill it there.

Counted are: creating, writing and closing a file, fsync, link, rename, mkdir. Used in a fork of `worker.py`.
"""

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

counted: list[str] = []
"""Operations so far."""


def fail(folder: str, at: int, code: int = errno.ENOSPC, number: int = 0) -> None:
    """Let operation number `at` below a folder fail, and those after it: a full disk stays full.

    Args:
        at: from 1; 0 counts alone.
        number: a signal that the process gets in place of the failure, before the operation.
    """
    open_, fsync, mkdir = io.open, os.fsync, os.mkdir
    replace, rename = Path.replace, Path.rename
    os_open, link = os.open, os.link

    def tick(path: object) -> None:
        if isinstance(path, (str, Path)) and not str(path).startswith(folder):
            return
        counted.append(str(path))
        if number and len(counted) == at:
            os.kill(os.getpid(), number)
        elif not number and 0 < at <= len(counted):
            raise OSError(code, os.strerror(code), str(path) if isinstance(path, (str, Path)) else None)

    class Failing:
        """A file whose writes are counted. It has no descriptor, so that nobody writes past it."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            tick(None)
            return self._file.write(data)

        def writelines(self, lines: Any) -> None:
            for line in lines:
                self.write(line)

        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *error: object) -> None:
            self.close()

        def close(self) -> None:
            if not self._file.closed:
                self._file.close()
                tick(None)

        def __getattr__(self, name: str) -> Any:
            if name == "fileno":
                raise AttributeError
            return getattr(self._file, name)

    def counted_open(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        writes = isinstance(path, (str, Path)) and any(sign in mode for sign in "wax+")
        if not writes or not str(path).startswith(folder):
            return open_(path, mode, *args, **kwargs)
        tick(path)
        return Failing(open_(path, mode, *args, **kwargs))

    def counted_os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            tick(path)
        return os_open(path, flags, *args, **kwargs)

    def counted_fsync(descriptor: int) -> None:
        tick(None)
        fsync(descriptor)

    def counted_mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        tick(path)
        mkdir(path, *args, **kwargs)

    def counted_link(path: Any, *args: Any, **kwargs: Any) -> None:
        tick(path)
        link(path, *args, **kwargs)

    def counted_replace(self: Path, target: Any) -> Path:
        tick(self)
        return replace(self, target)

    def counted_rename(self: Path, target: Any) -> Path:
        tick(self)
        return rename(self, target)

    for module in (io, builtins):
        setattr(module, "open", counted_open)  # noqa: B010
    os.open, os.fsync, os.mkdir, os.link = counted_os_open, counted_fsync, counted_mkdir, counted_link
    setattr(Path, "replace", counted_replace)  # noqa: B010
    setattr(Path, "rename", counted_rename)  # noqa: B010
