"""Foreign files that appear at an output's path while a command runs.

Before a command starts, its file plan settles what may be replaced (`lbm_lora.file_plan`). Minutes or hours later, the
code that renames a new file to its path checks here whether that still holds.
"""

import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from stat import S_ISDIR, S_ISLNK
from typing import ParamSpec, TypeVar

from lbm_lora.errors import OutputError
from lbm_lora.missing_path import absolute_path, home_path, real_path
from lbm_lora.output_place import is_protected
from lbm_lora.pinned_folder import PinnedFolder
from lbm_lora.regular_file import link_status, status_of, version_of

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Notes = dict[Path, Callable[[Path], bool]]
_MOST_LINKS = 40  # on the way to one folder; Linux follows no more
_BEGAN = "LBM_LORA_BEGAN"  # environment variable
_UNSCOPED: _Notes = {}
_UNPINNED: dict[Path, PinnedFolder] = {}
_UNKNOWN: dict[Path, object] = {}
_start: ContextVar[float | None] = ContextVar("_start", default=None)
"""When the call began, in seconds since the epoch."""
_is_handed_on: ContextVar[bool] = ContextVar("_is_handed_on", default=False)
"""Whether the call has started other processes, or was started as one of them."""
_folders: ContextVar[dict[Path, PinnedFolder]] = ContextVar("_folders", default=_UNPINNED)
"""Folders as they were when the call began, or first looked at."""
_versions: ContextVar[dict[Path, object]] = ContextVar("_versions", default=_UNKNOWN)
"""Versions of the files at the paths of the call when it began (see `version_of`)."""
_notes: ContextVar[_Notes] = ContextVar("_notes", default=_UNSCOPED)
"""A file, or a folder for all files in it, by each of its `_names`."""


@contextmanager
def notes_of_one_call(given: Iterable[object] = ()) -> Generator[None]:
    """Notes that are made inside end here: in Python, a process runs many commands, and saves files without a plan.

    Notes made outside apply inside too.

    Args:
        given: values of the call. The folders among the paths, and all that the paths are in, are pinned: inputs may
            be read for a long time before the outputs are noted.
    """
    start = _start.get()
    is_first_look = start is None and _is_first()
    began, notes = _start.set(_first_start() if start is None else start), _notes.set(dict(_notes.get()))
    folders, versions = _folders.set(dict(_folders.get())), _versions.set(dict(_versions.get()))
    paths = [home_path(value) for value in (Path(), *given) if isinstance(value, str | Path)]
    try:
        _pin(paths, is_first_look=is_first_look)
        yield
    finally:
        if start is None and _is_handed_on.get():  # another call of this process begins later
            os.environ.pop(_BEGAN, None)
            _is_handed_on.set(False)
        _versions.reset(versions)
        _folders.reset(folders)
        _notes.reset(notes)
        _start.reset(began)


def _pin(paths: Iterable[Path], *, is_first_look: bool) -> None:
    """Remember what is at paths at the beginning of a call, and the folders that are there, or that they are in.

    Args:
        is_first_look: whether nobody has waited since the command began.
    """
    for path in paths:
        if _is_first():
            _versions.get().setdefault(path, version_of(path))
        for folder in (path, path.parent, *absolute_path(path).parents, *real_path(path).parents):
            found = status_of(folder)
            if folder not in _folders.get() and found is not None and S_ISDIR(found.st_mode):
                came_late = not is_first_look and _may_have_come(folder)
                _folders.get()[folder] = PinnedFolder(folder, came_late=came_late)


def hand_on_start() -> None:
    """Tell processes that this one is going to start, and that run the same command, when it began."""
    start = _start.get()
    if start is not None:
        os.environ[_BEGAN] = repr(start)
        _is_handed_on.set(True)


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


def given_in(config: object) -> list[object]:
    """Return the values of a configuration, and of those in it: `doctor` is given that of another command."""
    values = list(vars(config).values()) if hasattr(config, "__dict__") else []
    overrides = (text for _, text in getattr(config, "overrides", ()))  # of the keys of a training file
    return [*values, *overrides, *(inner for value in values if is_dataclass(value) for inner in given_in(value))]


def one_call(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return a function of a configuration whose notes end with it."""

    @wraps(function)
    def call(*args: _P.args, **options: _P.kwargs) -> _T:
        with notes_of_one_call(given_in(args[0]) if args else ()):
            return function(*args, **options)

    return call


def pinned_folder(folder: Path) -> PinnedFolder:
    """Return a folder as it was when the call began, or at its first look in it."""
    if _notes.get() is _UNSCOPED:
        return PinnedFolder(folder)
    folders = _folders.get()
    if folder not in folders:
        folders[folder] = PinnedFolder(folder, came_late=_may_have_come(folder))
    return folders[folder]


def pin_made(folder: Path) -> PinnedFolder:
    """Return a folder that the command has just made, and pin it."""
    pinned = PinnedFolder(folder)
    if _notes.get() is not _UNSCOPED:
        _folders.get()[folder] = pinned
    return pinned


def _may_have_come(folder: Path) -> bool:
    """Return whether a folder may have been moved to its path since the call began, or any that links lead through."""
    return any(_was_moved((way, *way.parents)) for way in _ways(folder))


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


def _was_moved(folders: Iterable[Path]) -> bool:
    """Return whether a folder, or one above it, was moved to its path since the call began.

    A rename changes the time of what gets another name, and not that of its contents; a new file in a folder changes
    both, to the same one. If a file is made in a folder that was just moved, nobody can tell. The time of a link is
    when it was made.

    Args:
        folders: from the innermost on, up to one that is pinned.
    """
    start = _start.get()
    for one in folders:
        known = _folders.get().get(one)
        if known is not None:
            return known.came_late or not known.is_at(one)
        for status in (status_of(one), link_status(one)):
            if status is None or not _is_later(status.st_ctime, start):
                continue
            if status.st_ctime != status.st_mtime or S_ISLNK(status.st_mode):
                return True
    return False


def came_with_folder(path: Path, folder: PinnedFolder) -> bool:
    """Return whether the file at a path may have come there after the call began, with its folder or one above it.

    Args:
        folder: the one that it is in.
    """
    start, found = _start.get(), status_of(path)
    may_have_come = folder.is_missing or folder.came_late
    is_older = found is not None and start is not None and min(found.st_ctime, found.st_mtime) <= start
    return may_have_come and is_older  # a folder from another disk is copied, with the times of its files


def expect(path: Path, is_ours: Callable[[Path], bool] | None) -> None:
    """Note an output that is going to be written, or a folder for outputs whose names are not known yet.

    Args:
        is_ours: whether a file at its path, or in it, may be replaced; None: every one may.
    """
    notes = _notes.get()
    for name in _names(path):
        if is_ours is None:
            notes.pop(name, None)
        else:
            notes[name] = is_ours


def expect_only(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Note that a file at a noted output's path may be replaced only if this holds too."""
    before = _noted(path)
    expect(path, lambda now: (before is None or before(now)) and is_ours(now))


def expect_planned(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Note an output of one step of a call, in addition to what the other steps have noted."""
    if _notes.get() is _UNSCOPED:  # of an earlier call
        expect(path, is_ours)
    else:
        expect_only(path, is_ours)


def remember(path: Path) -> None:
    """Note what is at a path: later steps of the call compare with it, and ask no clock."""
    if _notes.get() is not _UNSCOPED:
        _versions.get().setdefault(path, version_of(path))


def has_appeared(path: Path) -> bool:
    """Return whether a file came to a path after the call began, or was changed since: before anybody looked there.

    For a link, also the link. Where no value of the call names the path, the time of change tells, if the disk has one.
    """
    if path in _versions.get():
        return path.exists() and version_of(path) != _versions.get()[path]
    start = _start.get()
    found = () if start is None else (status_of(path), link_status(path))
    return any(_is_later(one.st_ctime, start) for one in found if one is not None)


def _is_later(time: float, start: float | None) -> bool:
    """Return whether a file's time is after the start. Some disks count in whole seconds: then also the same second."""
    return start is not None and (time > start or time == math.floor(start))


def check_late(path: Path, *, names: int = 1) -> None:
    """Refuse to replace a file that is not ours, if its path or its folder was noted, and any link or protected file.

    Args:
        names: how many of the file's names are to be replaced.

    Raises:
        OutputError: there is one.
    """
    if not os.path.lexists(path):
        return
    if is_protected(path, names=names):
        raise OutputError(f"{path} is write-protected. It was kept. Choose another path, or make it writable.")
    if path.is_symlink() and path.exists():
        raise OutputError(f"{path} is a link to {path.readlink()}. It was kept. Give that path, or remove the link.")
    is_ours = _noted(path)
    if is_ours is not None and not is_ours(path):
        raise appeared(path)


def appeared(path: Path, name: str = "") -> OutputError:
    """Return the error for a file that appeared at an output's path.

    Args:
        name: what the message calls the output.
    """
    return OutputError(
        f"{name or path} appeared while this command ran, and this command did not write it. It was kept. Move it, or "
        "choose another output path, and run the command again."
    )


@contextmanager
def spared(path: Path, is_ours: Callable[[Path], bool]) -> Generator[None]:
    """Only a file that is ours is replaced at a path inside, where other notes allow it too."""
    notes = _notes.get()
    before = {name: notes.get(name) for name in _names(path)}
    expect_only(path, is_ours)
    try:
        yield
    finally:
        for name, noted in before.items():
            if noted is None:
                notes.pop(name, None)
            else:
                notes[name] = noted


def settle(path: Path) -> None:
    """Check a file now, and let only this very file be replaced later: what makes it ours may change before that.

    Raises:
        OutputError: it is not ours.
    """
    before = version_of(path)
    check_late(path)
    if _noted(path) is not None:
        expect(path, lambda now: before is not None and version_of(now) == before)


def _noted(path: Path) -> Callable[[Path], bool] | None:
    notes, names = _notes.get(), _names(path)
    found = (notes[one] for one in (*names, *(name.parent for name in names)) if one in notes)
    return next(found, None)


def _names(path: Path) -> tuple[Path, ...]:
    """The path without links on the way to it, and as it was given: the current folder may be renamed meanwhile.

    The path may be a link itself.
    """
    return real_path(path.parent) / path.name, absolute_path(path), Path(path)
