"""Foreign files that appear at an output's path while a command runs.

Before a command starts, its file plan settles what may be replaced (`lbm_lora.file_plan`). Minutes or hours later, the
code that renames a new file to its path checks here whether that still holds.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from lbm_lora.call_start import begun_call, call_start
from lbm_lora.errors import OutputError
from lbm_lora.missing_path import absolute_path, home_path, real_path
from lbm_lora.output_place import is_protected
from lbm_lora.plain_text import TextError, parse_yaml
from lbm_lora.regular_file import version_of

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Notes = dict[Path, Callable[[Path], bool]]
_UNSCOPED: _Notes = {}
_notes: ContextVar[_Notes] = ContextVar("_notes", default=_UNSCOPED)
"""A file, or a folder for all files in it, by each of its `_names`."""


@contextmanager
def notes_of_one_call(given: Iterable[object] = ()) -> Generator[None]:
    """Notes that are made inside end here: in Python, a process runs many commands, and saves files without a plan.

    Notes made outside apply inside too.

    Args:
        given: values of the call; see `begun_call` for the paths among them.
    """
    notes = _notes.set(dict(_notes.get()))
    try:
        with begun_call(_paths(_outside_lists(given)), listed=_paths(_in_lists(given))):
            yield
    finally:
        _notes.reset(notes)


def _paths(values: Iterable[object]) -> list[Path]:
    return [home_path(value) for value in values if isinstance(value, str | Path)]


def _outside_lists(values: Iterable[object]) -> Iterator[object]:
    """Yield values, and those in mappings among them, such as the keys of a training."""
    for value in values:
        if isinstance(value, Mapping):
            yield from _outside_lists(cast(Mapping[object, object], value).values())
        else:
            yield value


def _in_lists(values: Iterable[object]) -> Iterator[object]:
    """Yield the values in lists among values."""
    for value in _outside_lists(values):
        if isinstance(value, list | tuple):
            yield from cast(Sequence[object], value)


def given_in(config: object) -> list[object]:
    """Return the values of a configuration, and of those in it: `doctor` is given that of another command."""
    values = list(vars(config).values()) if hasattr(config, "__dict__") else []
    overrides = (_value_of(text) for _, text in getattr(config, "overrides", ()))  # of the keys of a training file
    return [*values, *overrides, *(inner for value in values if is_dataclass(value) for inner in given_in(value))]


def _value_of(text: str) -> object:
    """Return the value of a key that is given as YAML: a path may stand in quotes, or in a list."""
    try:
        return parse_yaml(text)
    except TextError:
        return text


def one_call(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return a function of a configuration whose notes end with it."""

    @wraps(function)
    def call(*args: _P.args, **options: _P.kwargs) -> _T:
        with notes_of_one_call([value for given in (*args, *options.values()) for value in given_in(given)]):
            return function(*args, **options)

    return call


def expect(path: Path, is_ours: Callable[[Path], bool] | None) -> None:
    """Note an output that is going to be written, or a folder for outputs whose names are not known yet.

    Args:
        is_ours: whether a file at its path, or in it, may be replaced; None: as its folder's note says.
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


def check_late(path: Path, *, names: int = 1) -> None:
    """Refuse to replace a link, a protected file, or an input of the call, and any other file that is not ours.

    A call that has noted outputs replaces only those, and files that it has written itself. An output may get another
    name by then: it depends on whether a LoRA is a folder, for example.

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
    start, is_ours = call_start(), _noted(path)
    is_planned = is_ours is not None or start.began is None or not _notes.get() or start.is_written(path)
    if not is_planned or start.is_input(path) or (is_ours is not None and not is_ours(path)):
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
