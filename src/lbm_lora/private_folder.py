"""Private folders in which outputs are written, and the removal of those that killed writers left.

A private folder stands next to its output, is called `.NAME.0.part` (a long name is shortened), and holds a note that
says whose it is. Nothing is removed for its name alone: a folder without the note stays, unless it is empty.

The writer holds a lock (flock) on the folder for as long as it lives, also across containers. So whoever finds a name
taken knows whether its writer is alive, and takes the next name, or was killed: then the folder is removed.
Windows opens no folders, and so locks none: there, such a folder is left to the user.
"""

import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_IMODE, S_IRUSR, S_IRWXU

try:
    import fcntl
except ImportError:  # Windows, which opens no folders either
    fcntl = None

NOTE = "lbm-lora.txt"
"""Name of the note in a private folder."""
NOTE_TEXT = b"Unfinished files of lbm-lora. The next command that writes the same output removes them.\n"
INNER = "new"
"""Name of a folder that is made in a private folder."""
_NAME = re.compile(r"\.(.+)\.[0-9a-f]+\.part", re.DOTALL)
_WRITERS = 100  # living writers of one output


_LONG = 100  # bytes of an output's name
_KEPT = 80


def stem_of(name: str) -> str:
    """Return `.NAME`, with which the names of an output's private folders begin.

    A long name is cut and gets a hash: an output may have any name that the disk takes, and `.0.part` must fit in.
    """
    data = os.fsencode(name)
    if len(data) <= _LONG:
        return f".{name}"
    return f".{data[:_KEPT].decode(errors='ignore')}-{sha256(data).hexdigest()[:16]}"


@dataclass(frozen=True)
class PrivateFolder:
    """A private folder that its writer holds.

    Attributes:
        lock: descriptor of the folder; None: the system opens no folders.
        status: what the system said about it when it was made.
    """

    path: Path
    lock: int | None
    status: os.stat_result

    def is_here(self) -> bool:
        """Return whether the path still names it: a folder above may be moved, and another writer start there."""
        return _is_at(self.status, self.path)


@dataclass
class _Taken:
    """Progress of a writer's setup, so that an interrupt between any two steps can be cleaned up.

    Attributes:
        folder: a path that is being created, or is.
        status: of the created folder; None: it may be somebody else's.
        lock: descriptor of the folder.
    """

    folder: Path | None = None
    status: os.stat_result | None = None
    lock: int | None = None

    def remove(self) -> None:
        if self.folder is None:
            return
        if self.status is None:
            remove_leftover(self.folder)
        elif _is_at(self.status, self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.forget()

    def forget(self) -> None:
        lock, self.folder, self.status, self.lock = self.lock, None, None, None
        if lock is not None:
            os.close(lock)


@contextmanager
def private_folder(path: Path) -> Generator[PrivateFolder]:
    """Yield a private folder next to `path`, removed at the end with all that is in it, unless it was moved meanwhile.

    Raises:
        OSError, ValueError: it cannot be created.
    """
    taken = _Taken()
    try:
        folder = _take(path, taken)
        (folder.path / NOTE).write_bytes(NOTE_TEXT)
        permit(folder.path / NOTE, S_IRUSR)
        yield folder
    finally:
        try:
            taken.remove()
        except KeyboardInterrupt:
            taken.remove()
            raise


def remove_leftover(folder: Path) -> bool:
    """Remove a private folder whose writer is dead; returns whether it did.

    The lock of a living writer protects it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except PermissionError:
        return _try_remove_new(folder)
    except (OSError, AttributeError):  # no folder; or Windows, which opens none
        return False
    try:
        if not _try_lock(descriptor) or not _is_at(os.fstat(descriptor), folder) or not _is_ours(folder):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return not os.path.lexists(folder)
    finally:
        os.close(descriptor)


def _try_remove_new(folder: Path) -> bool:
    """Remove a folder whose writer was killed before it gave itself the permissions that its umask denies."""
    try:
        if folder.lstat().st_mode & S_IRWXU == S_IRWXU:  # of another user
            return False
        folder.rmdir()
    except OSError:
        return False
    return True


def permit(path: Path, mode: int) -> None:
    """Give the owner permissions that the umask may deny. Others keep theirs, and new files the folder's group."""
    found = S_IMODE(path.stat().st_mode)
    if found & mode != mode:
        path.chmod(found | mode)


def output_of(path: Path) -> Path:
    """Return the path that a file is going to have, of one in a private folder or in a folder that is made there."""
    for private in path.parents:
        named = _NAME.fullmatch(private.name)
        if named is None or not (private / NOTE).is_file() or not _is_ours(private):
            continue
        inside, made = path.relative_to(private), private.parent
        if len(inside.parts) > 1 and inside.parts[0] == INNER:
            inside = inside.relative_to(INNER)
            made = made if named[1] == INNER else made / named[1]
        return output_of(made / inside)
    return path


def is_leftover(path: Path) -> bool:
    """Return whether a file is in a private folder, whose writer may be dead: another command may remove it."""
    named = (folder for folder in path.parents if _NAME.fullmatch(folder.name))
    return any((folder / NOTE).is_file() and _is_ours(folder) for folder in named)


def _is_ours(folder: Path) -> bool:
    """Return whether a folder holds our note, or nothing: then its writer was killed before the note was there."""
    try:
        if not any(one for one in folder.iterdir() if one.name != NOTE or one.stat().st_size):
            return True
        with (folder / NOTE).open("rb") as note:
            return note.read(len(NOTE_TEXT) + 1) == NOTE_TEXT
    except OSError:
        return False


def _take(path: Path, taken: _Taken) -> PrivateFolder:
    """Create a private folder, and lock it."""
    with suppress(FileNotFoundError):
        path.lstat()  # raises if the disk takes no name as long as the output's
    for number in range(_WRITERS):
        folder = path.with_name(f"{stem_of(path.name)}.{number}.part")
        while os.path.lexists(folder) and remove_leftover(folder):
            pass
        try:
            made = _create(folder, taken)
        except FileExistsError:
            taken.forget()
            continue
        if fcntl is None or made.lock is None:  # without locks, nobody takes it for a leftover
            return made
        try:
            fcntl.flock(made.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody is checking it as a leftover: take the next name
            pass
        except OSError:  # the disk has no locks
            return made
        else:
            if made.is_here():
                return made  # else it was removed as a leftover before it was locked
        taken.forget()
    folder = path.with_name(f"{stem_of(path.name)}.{secrets.token_hex(4)}.part")
    return _create(folder, taken)


def _create(folder: Path, taken: _Taken) -> PrivateFolder:
    taken.folder = folder
    folder.mkdir()
    permit(folder, S_IRWXU)
    if fcntl is None:
        taken.status = folder.lstat()
    else:
        taken.lock = os.open(folder, os.O_RDONLY)
        taken.status = os.fstat(taken.lock)
    return PrivateFolder(folder, taken.lock, taken.status)


def _try_lock(descriptor: int) -> bool:
    """Lock an open folder; return False if somebody has, or if the disk has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(status: os.stat_result, path: Path) -> bool:
    """Return whether a path still names a folder: its writer may have removed it."""
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False
