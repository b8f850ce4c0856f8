"""New files get their paths: all of them, or after an error none.

That a file cannot be replaced, because it is mounted, must not be changed, or is another user's, may only show when a
new one is renamed to its path. So every old file gets a second name before that (a hard link), and after an error or an
interrupt its path again. At no moment is a path without its file. Where the disk has no hard links, or the system
allows none to a file, that file cannot be put back.
"""

import errno
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE, S_IRWXG, S_ISREG

from lbm_lora.call_start import call_start
from lbm_lora.errors import OutputError
from lbm_lora.late_files import check_late
from lbm_lora.output_place import cannot_write
from lbm_lora.regular_file import Version, version_in

_UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF}
FLUSHABLE = os.O_RDWR if os.name == "nt" else os.O_RDONLY
"""Flags for opening a file in order to flush it: Windows requires write access."""
_ACL = "system.posix_acl_access"  # Linux's list of users and groups with permissions of their own


@dataclass(frozen=True)
class Draft:
    """A complete file that waits for its path.

    Attributes:
        file: where it is, on the disk of its path.
        spare: a free name there, for the file that it replaces. Whoever chose it removes what is left of that name.
        replaced: the file at the path that was looked at, and may be replaced; see `version_at`.
    """

    path: Path
    file: Path
    spare: Path
    replaced: Version | None


_placed: ContextVar[dict[Path, Version] | None] = ContextVar("_placed", default=None)


@contextmanager
def placed_files() -> Generator[dict[Path, Version]]:
    """Yield what gets the version of each file that gets its path inside: another one may be there soon after."""
    placed: dict[Path, Version] = {}
    before = _placed.set(placed)
    try:
        yield placed
    finally:
        _placed.reset(before)


def replace_all(drafts: Sequence[Draft]) -> None:
    """Rename files to their paths, and flush them to disk. After an error the paths have their old files.

    Raises:
        OutputError: the file at a path cannot be replaced, or has appeared there; two paths are one to the disk; or the
            disk is full.
        FileNotFoundError: a file is not where it was, as its folder was removed or moved.
    """
    files = [draft.file.stat() for draft in drafts]
    begun: list[tuple[Draft, os.stat_result, bool]] = []
    try:
        for draft, new in zip(drafts, files, strict=True):
            _check_own_place(draft, [(one, file) for one, file, _ in begun])
            was_there = os.path.lexists(draft.path)
            begun.append((draft, new, was_there))
            if was_there:  # not earlier: another writer may have replaced it since
                _keep(draft)
                _keep_mode(draft)
            if version_at(draft.path) != draft.replaced:  # as late as can be
                check_late(draft.path)
            _rename(draft, was_there=was_there)
        for folder in dict.fromkeys(draft.path.parent for draft in drafts):
            sync_folder(folder)
        versions = {draft.path: version_in(new) for draft, new in zip(drafts, files, strict=True)}
        call_start().note_written(versions.values())
        placed = _placed.get()
        if placed is not None:
            placed |= versions
    except BaseException:
        while True:
            try:
                _put_all_back(begun)
                break
            except KeyboardInterrupt:  # another one
                continue
        raise


def version_at(path: Path) -> Version | None:
    """Return what tells a file from another one at its path; of a link, the link."""
    try:
        return version_in(path.stat(follow_symlinks=False))
    except OSError:
        return None


def _keep(draft: Draft) -> None:
    """Give an old file a second name, where the disk and the system allow it."""
    try:
        os.link(draft.path, draft.spare, follow_symlinks=False)
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # it could, but is full
            raise cannot_write(draft.path, error) from None


def _check_own_place(draft: Draft, done: Iterable[tuple[Draft, os.stat_result]]) -> None:
    """Check that the path is not that of a draft before: some disks do not tell cases, or forms of a letter, apart."""
    try:
        there = draft.path.lstat()
    except OSError:
        return
    for first, new in done:
        if os.path.samestat(there, new):
            raise OutputError(
                f"{first.path} and {draft.path} are one file: the disk does not tell their names apart. Rename one."
            )


def _keep_mode(draft: Draft) -> None:
    """Give a new file the owner, group and permissions of the old one: what was private stays private.

    Only root gives a file to another owner. A group that cannot be given to it leaves its members no permissions.
    """
    old, new = draft.path.lstat(), draft.file.stat()
    if not S_ISREG(old.st_mode) or new.st_nlink > 1:  # a second name of another file, whose permissions stay
        return
    mode = S_IMODE(old.st_mode)
    if new.st_uid != old.st_uid and hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(draft.file, old.st_uid, -1)
    with suppress(OSError):
        if new.st_gid != old.st_gid and not _try_chgrp(draft.file, old.st_gid):
            mode &= ~S_IRWXG
        draft.file.chmod(mode)
        if hasattr(os, "getxattr"):
            os.setxattr(draft.file, _ACL, os.getxattr(draft.path, _ACL))


def _try_chgrp(file: Path, group: int) -> bool:
    """Give a file a group; return whether that worked."""
    try:
        os.chown(file, -1, group)
    except OSError:
        return False
    return True


def _rename(draft: Draft, *, was_there: bool) -> None:
    try:
        if was_there or not _try_link(draft):
            draft.file.replace(draft.path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise cannot_write(draft.path, error) from None


def _try_link(draft: Draft) -> bool:
    """Give a file its path by a link, which replaces nothing; return False if the disk has none, or something is there.

    Raises:
        OutputError: what has appeared there may not be replaced.
    """
    try:
        os.link(draft.file, draft.path)
    except FileExistsError:
        check_late(draft.path)
        return False
    except (OSError, NotImplementedError):
        return False
    draft.file.unlink()
    return True


def _put_all_back(begun: Iterable[tuple[Draft, os.stat_result, bool]]) -> None:
    for draft, new, was_there in begun:
        with suppress(OSError):
            _put_back(draft, new, was_there=was_there)


def _put_back(draft: Draft, new: os.stat_result, *, was_there: bool) -> None:
    """Undo a rename, unless it has not happened, or another writer has replaced the new file."""
    if not os.path.lexists(draft.path):  # somebody has moved the new file away
        if draft.spare.lstat().st_nlink == 1:  # and not the old one
            os.link(draft.spare, draft.path, follow_symlinks=False)
        return
    if not os.path.samestat(draft.path.lstat(), new):
        return
    if os.path.lexists(draft.spare):
        draft.spare.replace(draft.path)
    elif not was_there:
        draft.path.unlink()


def sync(path: Path) -> None:
    """Flush a file to disk."""
    descriptor = os.open(path, FLUSHABLE)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, where the system can: some disks refuse it, and a folder may be unreadable."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
