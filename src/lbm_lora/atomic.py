"""Atomic file writes: an output is complete or absent.

Every output is written in a private folder next to it, synced to disk and renamed: whatever happens in between, a
reader sees the old file or the new one, never a partial one.
"""

import errno
import os
import re
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from lbm_lora.errors import Option, OutputError
from lbm_lora.late_files import check_late
from lbm_lora.private_folder import output_of, private_folder, remove_leftover

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE = 10.0
"""Seconds to wait for a folder that somebody holds."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # only writing fails with these
_INNER = "new"
_LEFT = re.compile(rf"\.{_INNER}\.[0-9a-f]+\.part")


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a path of the same name in a private folder: renamed to `path` on a clean exit, deleted on any other.

    Raises:
        OutputError: the folder cannot be created or written to, or is removed meanwhile; `path` is a folder, a
            device, or a link to nothing; or a file of somebody else appeared there (see `lbm_lora.late_files`).
    """
    path = Path(path)
    with _made_folder(path.parent), _private(path) as folder:
        if path.is_dir():
            raise OutputError(f"{path} is a folder. Give the path of a file.")
        if path.exists() and not S_ISREG(path.stat().st_mode):
            raise OutputError(f"{path} is not a regular file. Choose another output path.")
        check_link(path)
        temporary = folder / path.name
        yield temporary
        _sync(temporary)
        check_late(path)
        temporary.replace(path)
        _sync(path.parent)


def check_link(path: Path) -> None:
    """Refuse a link to nothing: it belongs to somebody, and where its file would go is not known.

    Raises:
        OutputError: `path` is one.
    """
    if path.is_symlink() and not path.exists():
        raise OutputError(
            f"{path} is a link to {path.readlink()}, where no file is. Remove the link, or choose another output path."
        )


@contextmanager
def atomic_folder(folder: Path, *, overwrite: bool = False) -> Generator[Path]:
    """Yield a temporary folder for files: renamed to `folder` on a clean exit, deleted on any other.

    If `folder` exists, it may be a link or a disk of its own: then the temporary folder is in it, and the files are
    moved out of that one after another.

    Args:
        overwrite: whether `folder` may hold files. Those of the same names are replaced, others stay.

    Raises:
        OutputError: `folder` cannot be created, or is there and not empty, now or at the end; or the folder above it is
            removed meanwhile.
    """
    with _made_folder(folder.parent):
        try:
            exists = folder.is_dir()
            is_taken = not overwrite and _is_used(folder) if exists else os.path.lexists(folder)
        except (OSError, ValueError) as error:
            raise _cannot_write(folder, error) from None
        if is_taken:
            raise OutputError(
                f"{folder} already exists. Give a new or an empty folder",
                *([", or use ", Option("overwrite"), " to add to it."] if exists else ["."]),
            )
        with _private(folder / _INNER if exists else folder) as private:
            temporary = private / _INNER
            temporary.mkdir()
            yield temporary
            if exists:
                files = sorted(temporary.iterdir())
                for file in files:
                    check_late(folder / file.name)
                for file in files:
                    file.replace(folder / file.name)
                _sync(folder)
            else:
                _move_folder(temporary, folder)
                _sync(folder.parent)


def _move_folder(temporary: Path, folder: Path) -> None:
    """Rename a folder, unless another process has made one of that name meanwhile."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise OutputError(f"{folder} has been written by another process. Give a new or an empty folder.") from None


@contextmanager
def scratch_folder(path: Path) -> Generator[Path]:
    """Yield a private folder next to `path` for files that are removed at the end; it has the name of no other run.

    Raises:
        OutputError: it cannot be created.
    """
    with _made_folder(path.parent), _private(path) as folder:
        yield folder


@contextmanager
def _private(path: Path) -> Generator[Path]:
    """Yield a private folder next to `path`; what the disk refuses names the output."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(path))
        except (OSError, ValueError) as error:
            raise _cannot_write(path, error) from None
        try:
            yield folder
        except FileNotFoundError:
            if folder.is_dir():
                raise
            raise OutputError(
                f"{path.parent} was removed while a file was written to it. Run the command again."
            ) from None
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _cannot_write(output_of(path), error) from None


@contextmanager
def held_folder(folder: Path) -> Generator[bool]:
    """Create a folder and hold it for one writer; yields whether nobody else holds it.

    The processes that load data for a killed writer hold it a little longer, so it is waited for, at most `PATIENCE`.

    Raises:
        OutputError: it cannot be created.
    """
    with _made_folder(folder):
        if fcntl is None:
            yield True
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            yield _is_free(descriptor)
        finally:
            os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    """Lock an open folder; False if another one holds it to the end of our patience."""
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


def _is_used(folder: Path) -> bool:
    """Return whether there is anything in a folder, apart from what a killed writer left."""
    return any(not (_LEFT.fullmatch(one.name) and remove_leftover(one)) for one in folder.iterdir())


@contextmanager
def _made_folder(folder: Path) -> Generator[None]:
    """Create a folder, with those above it; after an error, those that were created are removed if they are empty."""
    made: list[Path] = []
    try:
        try:
            made = [one for one in (folder, *folder.parents) if not one.exists()]  # the innermost first
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OutputError(f"{folder} cannot be created: {reason}. Choose another output path.") from None
        yield
    except BaseException:
        for one in made:
            with suppress(OSError, ValueError):
                one.rmdir()
        raise


def _cannot_write(path: Path, error: Exception) -> OutputError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return OutputError(f"{path} cannot be written: {reason}. Choose another output path.")


def written_bytes(*paths: Path) -> int:
    """Return the size of files that were written, in bytes.

    Raises:
        OutputError: one of them has been removed since.
    """
    try:
        return sum(path.stat().st_size for path in paths)
    except FileNotFoundError as error:
        raise OutputError(f"{error.filename} was removed after it was written. Run the command again.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
