"""Remember what was at a call's paths when it began, to tell what has appeared there since.

A call is that of a command, or of a function in Python. One that runs in another, as the steps of `compress` do, counts
as part of it, and so does one in a process that a call has started to run the same command.
"""

import math
import os
import time
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from stat import S_ISDIR, S_ISLNK

from lbm_lora.input_files import files_behind
from lbm_lora.missing_path import absolute_path, real_path
from lbm_lora.pinned_folder import PinnedFolder
from lbm_lora.regular_file import Version, link_status, status_of, version_of

_MOST_LINKS = 40  # on the way to one folder; Linux follows no more
_BEGAN = "LBM_LORA_BEGAN"  # environment variable


class CallStart:
    """The beginning of a call. Where no call runs, nothing is remembered, and nothing has come since.

    Attributes:
        began: when, in seconds since the epoch; None: no call runs.
    """

    def __init__(self, outer: "CallStart | None" = None) -> None:
        """Begin a call.

        Args:
            outer: of the call that it is a part of; None: no call runs.
        """
        self.began: float | None = None
        self._outermost = self if outer is None or outer.began is None else outer._outermost
        self._is_handed_on = False  # to other processes
        self._folders: dict[Path, PinnedFolder] = {}  # as they were when the call began, or first looked at
        self._versions: dict[Path, Version | None] = {}  # of the files at the paths of the call when it began
        self._inputs: set[Version] = set()  # that steps of the call read
        self._written: set[Version] = set()
        if outer is not None:
            self.began = _first_start() if outer.began is None else outer.began
            self._folders |= outer._folders
            self._versions |= outer._versions
        if self._outermost is not self:
            self._inputs, self._written = self._outermost._inputs, self._outermost._written  # of all steps

    def pin(self, paths: Iterable[Path], *, is_first_look: bool) -> None:
        """Hold the folders at paths at the beginning of a call, and those that paths are in, and the current one.

        Args:
            is_first_look: whether nobody has waited since the command began.
        """
        for path in (*paths, Path()):
            for folder in (path, path.parent, *absolute_path(path).parents, *real_path(path).parents):
                found = None if folder in self._folders else status_of(folder)
                if found is not None and S_ISDIR(found.st_mode):
                    came_late = not is_first_look and self._may_have_come(folder)
                    self._folders[folder] = PinnedFolder(folder, came_late=came_late)

    def know(self, paths: Iterable[Path]) -> None:
        """Remember the files behind paths at the beginning of a call."""
        for path in paths if _is_first() else ():
            for file in (path, *files_behind(path)):
                self.remember(file)

    def pinned_folder(self, folder: Path) -> PinnedFolder:
        """Return a folder as it was when the call began, or at its first look in it."""
        if self.began is None:
            return PinnedFolder(folder)
        if folder not in self._folders:
            self._folders[folder] = PinnedFolder(folder, came_late=self._may_have_come(folder))
        return self._folders[folder]

    def pin_made(self, folder: Path) -> PinnedFolder:
        """Return a folder that the command has just made, and pin it."""
        pinned = PinnedFolder(folder)
        if self.began is not None:
            self._folders[folder] = pinned
        return pinned

    def remember(self, path: Path) -> None:
        """Note what is at a path: later steps of the call compare with it, and ask no clock."""
        if self.began is not None:
            self._versions.setdefault(path, version_of(path))

    def has_appeared(self, path: Path) -> bool:
        """Return whether a file came to a path after the call began, or was changed since: before anybody looked there.

        For a link, also the link. Where no value of the call names the path, the time of change tells, if the disk has
        one.
        """
        if path in self._versions:
            return path.exists() and version_of(path) != self._versions[path]
        found = () if self.began is None else (status_of(path), link_status(path))
        return any(self._is_later(one.st_ctime) for one in found if one is not None)

    def has_gone(self, path: Path) -> bool:
        """Return whether a path that the call names had a file when it began, and has none now."""
        return self._versions.get(path) is not None and not path.exists()

    def note_inputs(self, versions: Iterable[Version]) -> None:
        """Note files that a step of the call reads: no later step replaces them, wherever they are by then."""
        if self.began is not None:
            self._inputs.update(versions)

    def note_written(self, versions: Iterable[Version]) -> None:
        """Note files that the call has written: it may replace them, also where no step has planned that."""
        if self.began is not None:
            self._written.update(versions)

    def is_input(self, path: Path) -> bool:
        """Return whether a step of the call reads the file at a path, or it was elsewhere when the call began.

        Elsewhere: at another path that the call names, where it may have been an input.
        """
        there = version_of(path)
        return there in self._inputs or (self.has_appeared(path) and there in self._versions.values())

    def is_written(self, path: Path) -> bool:
        """Return whether the call has written the file that is at a path now."""
        return version_of(path) in self._written

    def came_with_folder(self, path: Path, folder: PinnedFolder) -> bool:
        """Return whether the file at a path may have come there after the call began, with its folder or one above it.

        Args:
            folder: the one that it is in.
        """
        found = status_of(path)
        may_have_come = folder.is_missing or folder.came_late
        is_older = found is not None and self.began is not None and min(found.st_ctime, found.st_mtime) <= self.began
        return may_have_come and is_older  # a folder from another disk is copied, with the times of its files

    def hand_on(self) -> None:
        """Tell processes that this one is going to start, and that run the same command, when it began."""
        if self.began is not None:
            os.environ[_BEGAN] = repr(self.began)
            self._outermost._is_handed_on = True

    def end(self) -> None:
        """Tell processes nothing more: another call of this one begins later."""
        if self._is_handed_on:
            os.environ.pop(_BEGAN, None)

    def _may_have_come(self, folder: Path) -> bool:
        """Return whether a folder, or any that links lead through, may have been moved to its path since the start."""
        return any(self._was_moved((way, *way.parents)) for way in _ways(folder))

    def _was_moved(self, folders: Iterable[Path]) -> bool:
        """Return whether a folder, or one above it, was moved to its path since the call began.

        A rename changes the time of what gets another name, and not that of its contents; a new file in a folder
        changes both, to the same one. If a file is made in a folder that was just moved, nobody can tell. The time of a
        link is when it was made.

        Args:
            folders: from the innermost on, up to one that is pinned.
        """
        for one in folders:
            known = self._folders.get(one)
            if known is not None:
                return known.came_late or not known.is_at(one)
            for status in (status_of(one), link_status(one)):
                if status is None or not self._is_later(status.st_ctime):
                    continue
                if status.st_ctime != status.st_mtime or S_ISLNK(status.st_mode):
                    return True
        return False

    def _is_later(self, time: float) -> bool:
        """Return whether a file's time is after the start. Some disks count in whole seconds: also the same second."""
        return self.began is not None and (time > self.began or time == math.floor(self.began))


_NO_CALL = CallStart()
_start: ContextVar[CallStart] = ContextVar("_start", default=_NO_CALL)


def call_start() -> CallStart:
    """Return the beginning of the call that runs now."""
    return _start.get()


@contextmanager
def begun_call(paths: Collection[Path], *, listed: Iterable[Path] = ()) -> Generator[None]:
    """A call begins, and ends here.

    Args:
        paths: of the call. The files behind them are remembered, and the folders among them, and all that they are in,
            are pinned: inputs may be read for a long time before the outputs are noted.
        listed: paths in lists, of which there may be thousands. They are inputs: only the files are remembered.
    """
    outer = call_start()
    call = CallStart(outer)
    before = _start.set(call)
    try:
        call.know((*paths, *listed))
        call.pin(paths, is_first_look=outer.began is None and _is_first())
        yield
    finally:
        call.end()
        _start.reset(before)


def _first_start() -> float:
    """Return the present time; in a process that another one has started for the same command, when that one began."""
    try:
        return time.time() if _is_first() else float(os.environ[_BEGAN])
    except (KeyError, ValueError):
        return time.time()


def _is_first() -> bool:
    """Return whether this is the first of several processes that run one command, or the only one.

    A shell in a job of several processes has a number too.
    """
    return os.environ.get("LOCAL_RANK", "0") == "0" or _BEGAN not in os.environ


def _ways(folder: Path) -> Iterator[Path]:
    """Yield the path of a folder, and the paths that the links on the way lead to, one after another."""
    way = absolute_path(folder)
    for _ in range(_MOST_LINKS):
        yield way
        link = next((one for one in (*reversed(way.parents), way) if one.is_symlink()), None)
        if link is None:
            return
        way = link.parent / link.readlink() / way.relative_to(link)
    yield real_path(folder)
