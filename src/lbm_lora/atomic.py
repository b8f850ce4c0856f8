"""Atomic file writes: an output is complete or absent.

Every output is written in a private folder next to it, synced to disk and renamed: whatever happens in between, a
reader sees the old file or the new one, never a partial one. The outputs of a command that belong together are renamed
together, after the last one is complete (`together`).
"""

import errno
import os
import re
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from lbm_lora.errors import Option, OutputError
from lbm_lora.late_files import check_late
from lbm_lora.output_place import check_replaceable
from lbm_lora.private_folder import INNER, output_of, private_folder, remove_leftover

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # only writing fails with these
_LEFT = re.compile(rf"\.{INNER}\.[0-9a-f]+\.part")


@dataclass(frozen=True)
class _Waiting:
    """Complete files that wait for others.

    Attributes:
        folders: the private folders that they are in.
        drafts: path of an output -> the file.
    """

    folders: ExitStack
    drafts: dict[Path, Path] = field(default_factory=dict[Path, Path])


_waiting: ContextVar[_Waiting | None] = ContextVar("_waiting", default=None)


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a path of the same name in a private folder: renamed to `path` on a clean exit, deleted on any other.

    Inside `together`, it is renamed later.

    Raises:
        OutputError: the folder cannot be created or written to, or is removed meanwhile; `path` is a folder, a
            device, or a link to nothing; or a file of somebody else appeared there (see `lbm_lora.late_files`).
    """
    path = Path(path)
    with ExitStack() as stack:
        stack.enter_context(made_folder(path.parent))
        folder = stack.enter_context(_private(path))
        check_replaceable(path)
        temporary = folder / path.name
        yield temporary
        _sync(temporary)
        waiting = _waiting.get()
        if waiting is None or output_of(path) != path:  # a draft of a draft: somebody reads it before the end
            _rename({path: temporary})
        else:
            waiting.drafts[path] = temporary
            waiting.folders.enter_context(stack.pop_all())


@contextmanager
def together() -> Generator[None]:
    """Outputs that are written inside appear at its end: all of them, or after an error none.

    Until then `current` returns where each of them is. Inside another one, they appear at the end of that.
    """
    if _waiting.get() is not None:
        yield
        return
    with ExitStack() as folders:
        waiting = _Waiting(folders)
        with _set(waiting):
            yield
        _rename(waiting.drafts)


def at_once() -> AbstractContextManager[None]:
    """Outputs that are written inside appear at once, also within `together`: those that took long to make."""
    return _set(None)


@contextmanager
def _set(waiting: _Waiting | None) -> Generator[None]:
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)


def current(path: Path) -> Path:
    """Return where the file for a path is: there, or in a private folder until outputs appear together."""
    waiting = _waiting.get()
    return path if waiting is None else waiting.drafts.get(path, path)


def _rename(drafts: Mapping[Path, Path]) -> None:
    """Give complete files their paths."""
    for path in drafts:
        check_late(path)
    for path, draft in drafts.items():
        draft.replace(path)
    for folder in dict.fromkeys(path.parent for path in drafts):
        _sync(folder)


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
    with made_folder(folder.parent):
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
        with _private(folder / INNER if exists else folder) as private:
            temporary = private / INNER
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
    with made_folder(path.parent), _private(path) as folder:
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


def _is_used(folder: Path) -> bool:
    """Return whether there is anything in a folder, apart from what a killed writer left."""
    return any(not (_LEFT.fullmatch(one.name) and remove_leftover(one)) for one in folder.iterdir())


@contextmanager
def made_folder(folder: Path) -> Generator[None]:
    """Create a folder, with those above it; after an error, those that were created are removed if they are empty.

    Raises:
        OutputError: it cannot be created.
    """
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
    """Return the size of files that were written, in bytes; they may not be at their paths yet (see `together`).

    Raises:
        OutputError: one of them has been removed since.
    """
    try:
        return sum(current(path).stat().st_size for path in paths)
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
