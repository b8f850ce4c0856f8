"""Atomic file writes: an output is complete or absent.

Every output is written in a private folder next to it, synced to disk and renamed: whatever happens in between, a
reader sees the old file or the new one, never a partial one. The outputs of a command that belong together are renamed
together, after the last one is complete (`together`).
"""

import errno
import os
import re
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IRWXU

from lbm_lora.call_start import call_start
from lbm_lora.errors import Option, OutputError
from lbm_lora.late_files import check_late
from lbm_lora.output_place import cannot_write, check_replaceable
from lbm_lora.pinned_folder import PinnedFolder
from lbm_lora.private_folder import INNER, PrivateFolder, output_of, permit, private_folder, remove_leftover, stem_of
from lbm_lora.regular_file import identity_of
from lbm_lora.replacement import Draft, replace_all, sync, sync_folder, version_at

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # only writing fails with these
_UNUSED = (".gitkeep", ".gitignore", ".DS_Store", "Thumbs.db", "desktop.ini")  # an empty folder may have them
_LEFT = re.compile(rf"\.{INNER}\.[0-9a-f]+\.part")


@dataclass(frozen=True)
class _Waiting:
    """Complete files that wait for others.

    Attributes:
        folders: the private folders that they are in.
        drafts: path of an output -> the private folder that the file is in.
    """

    folders: ExitStack
    drafts: dict[Path, PrivateFolder] = field(default_factory=dict[Path, PrivateFolder])


_waiting: ContextVar[_Waiting | None] = ContextVar("_waiting", default=None)


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a path of the same name in a private folder: renamed to `path` on a clean exit, deleted on any other.

    Inside `together`, it is renamed later.

    Raises:
        OutputError: the folder cannot be created or written to, or is removed or moved meanwhile; `path` is a folder, a
            device, or a link to nothing, now or at the end; or a file of somebody else appeared there (see
            `lbm_lora.late_files`).
    """
    path = Path(path)
    with ExitStack() as stack:
        stack.enter_context(made_folder(path.parent))
        folder = stack.enter_context(_private(path))
        check_replaceable(path)
        temporary = _draft(path, folder)
        yield temporary
        try:
            sync(temporary)
        except PermissionError as error:  # the umask lets nobody read it
            raise cannot_write(output_of(path), error) from None
        waiting = _waiting.get()
        if waiting is None or output_of(path) != path:  # a draft of a draft: somebody reads it before the end
            _rename({path: folder})
        else:
            waiting.drafts[path] = folder
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
    return _draft(path, waiting.drafts[path]) if waiting is not None and path in waiting.drafts else path


def _draft(path: Path, folder: PrivateFolder) -> Path:
    return folder.path / path.name


def _rename(drafts: Mapping[Path, PrivateFolder], inside: str = "") -> None:
    """Give complete files their paths: all of them, or after an error none.

    Args:
        inside: folder in the private folders that the files are in.
    """
    complete: list[Draft] = []
    for path, folder in drafts.items():
        file, spare = folder.path / inside / path.name, folder.path / stem_of(path.name)
        complete.append(Draft(path, file, spare, replaced=version_at(path)))
    names = Counter(map(identity_of, drafts))
    for path, folder in drafts.items():
        _check_end(path, folder, max(1, names[identity_of(path)]))  # a file that appeared since has one name at least
    replace_all(complete)


def _check_end(path: Path, folder: PrivateFolder, names: int) -> None:
    """Check, before a file from a private folder gets its path, what may have changed since the folder was made.

    Args:
        names: how many outputs are names of the file that is at the path.

    Raises:
        FileNotFoundError: the private folder was removed or moved; `_private` says so.
        OutputError: there is something else at the path now.
    """
    if not folder.is_here():
        raise FileNotFoundError(folder.path)
    check_replaceable(path)
    check_late(path, names=names)


@contextmanager
def atomic_folder(folder: Path, *, overwrite: bool = False) -> Generator[Path]:
    """Yield a temporary folder for files: renamed to `folder` on a clean exit, deleted on any other.

    If `folder` exists, it may be a link or a disk of its own: then the temporary folder is in it, and the files are
    moved out of that one after another.

    Args:
        overwrite: whether `folder` may hold files. Those of the same names are replaced, others stay.

    Raises:
        OutputError: `folder` cannot be created, or is there and not empty, now or at the end; or the folder above it is
            removed or moved meanwhile.
    """
    with made_folder(folder.parent):
        try:
            exists = folder.is_dir()
            is_taken = not overwrite and _is_used(folder) if exists else os.path.lexists(folder)
        except (OSError, ValueError) as error:
            raise cannot_write(folder, error) from None
        if is_taken:
            raise OutputError(
                f"{folder} already exists. Give a new or an empty folder",
                *([", or use ", Option("overwrite"), " to add to it."] if exists else ["."]),
            )
        with _private(folder / INNER if exists else folder) as private:
            temporary = private.path / INNER
            temporary.mkdir()
            permit(temporary, S_IRWXU)
            yield temporary
            if exists:
                _rename({folder / file.name: private for file in sorted(temporary.iterdir())}, INNER)
            else:
                _move_folder(private, folder)
                sync_folder(folder.parent)


def _move_folder(private: PrivateFolder, folder: Path) -> None:
    """Rename a new folder, unless there is something of that name by now: a file, a link, a folder with files."""
    if not private.is_here():
        raise FileNotFoundError(private.path)
    try:
        if os.path.lexists(folder):  # a rename replaces an empty folder
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        (private.path / INNER).rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise OutputError(f"{folder} appeared while this command ran. Give a new or an empty folder.") from None


@contextmanager
def scratch_folder(path: Path) -> Generator[Path]:
    """Yield a private folder next to `path` for files that are removed at the end; it has the name of no other run.

    Raises:
        OutputError: it cannot be created.
    """
    with made_folder(path.parent), _private(path) as folder:
        yield folder.path


@contextmanager
def _private(path: Path) -> Generator[PrivateFolder]:
    """Yield a private folder next to `path`; what the disk refuses names the output."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(path))
        except (OSError, ValueError) as error:
            raise cannot_write(path, error) from None
        try:
            yield folder
        except FileNotFoundError:
            if folder.is_here():
                raise
            raise OutputError(
                f"{path.parent} was removed or moved while a file was written to it. Run the command again."
            ) from None
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise cannot_write(output_of(path), error) from None


def _is_used(folder: Path) -> bool:
    """Return whether there is anything in a folder, apart from what a killed writer, git or a file browser left."""
    found = (one for one in folder.iterdir() if one.name not in _UNUSED)
    return any(not (_LEFT.fullmatch(one.name) and remove_leftover(one)) for one in found)


@contextmanager
def made_folder(folder: Path) -> Generator[None]:
    """Create a folder, with those above it; after an error, those that were created are removed if they are empty.

    Raises:
        OutputError: it cannot be created.
    """
    made: dict[Path, PinnedFolder] = {}
    try:
        try:
            missing = [one for one in (folder, *folder.parents) if not one.exists()]
            for one in reversed(missing):
                if _try_mkdir(one):
                    made[one] = call_start().pin_made(one)
            if not folder.is_dir():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OutputError(f"{folder} cannot be created: {reason}. Choose another output path.") from None
        yield
    except BaseException:
        for one, pinned in reversed(made.items()):
            with suppress(OSError, ValueError):
                if pinned.is_at(one):  # and none that was moved there
                    one.rmdir()
        raise


def _try_mkdir(folder: Path) -> bool:
    """Create a folder; return whether this call did, and not somebody else just before."""
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
        return False
    return True


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
    """Write a text file atomically, in UTF-8; what is not text, as in a file name of another encoding, becomes `?`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
