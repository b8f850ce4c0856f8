"""The errors of lbm-lora, with the exit code of each.

    LbmLoraError                 3   a defect in lbm-lora (never raised directly)
    ├── InputError               2   bad usage or bad input: one line, nothing written
    │   ├── CheckpointError          a file cannot be read as a checkpoint, or lacks required content
    │   ├── PairingError             two checkpoints do not belong together (names, shapes, non-finite values)
    │   ├── AdapterError             a file is not a supported adapter, or does not fit the model
    │   ├── WrongBaseError           an adapter was made from another base
    │   ├── PatternError             a name pattern is malformed or matches nothing
    │   ├── ConfigError              a configuration key, value or combination is invalid
    │   ├── ImageError               an image or mask cannot be read or does not fit
    │   ├── DataError                a data set cannot be read, or has too many corrupt samples
    │   └── OutputError              an output path cannot or must not be written
    ├── HubError                 2   a hub repository cannot be reached or does not exist
    ├── MissingExtraError        2   an optional dependency is not installed
    └── QualityError             1   the command ran, but its result misses the requested limit or lacks a part

Every message names the item, where it was found, both sides if two disagree, and what to do.
Messages are part of the interface: tests compare them word for word.

The remedy is often an option of the caller. It is data (`Option`) among the parts of a message: each front end spells
it in its own terms, as a flag, a key of a file or a widget; `str` spells it as a Python argument.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import ClassVar

_MOST_LOOKED_AT = 10_000  # entries of a folder: data sets may have millions
_MOST_KINDS = 3


@dataclass(frozen=True)
class Option:
    """An option of the caller, by its name in a config.

    Attributes:
        name: `exclude`.
        value: what to give it: `drop`; several to choose from, `keep|drop`; or a placeholder in capitals, `FOLDER`.
        is_off: the option switched off.
    """

    name: str
    value: str = ""
    is_off: bool = False

    def __str__(self) -> str:
        if self.is_off:
            return f"{self.name}=False"
        if not self.value or self.value.isupper():
            return self.name
        return f"{self.name}=" + " or ".join(f'"{value}"' for value in self.value.split("|"))


Spelling = Callable[[Option], str]


def spelled(parts: Iterable[object], spelling: Spelling = str) -> str:
    """Return the text of a message whose parts are strings and options."""
    return "".join(spelling(part) if isinstance(part, Option) else str(part) for part in parts)


class LbmLoraError(Exception):
    """Base class of all errors. `exit_code` is the exit code of a command that ends with this error.

    Args:
        parts: the parts of the message, strings and options.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, *parts: str | Option) -> None:
        super().__init__(*parts)

    def __str__(self) -> str:
        return spelled(self.args)


class InputError(LbmLoraError, ValueError):
    """Bad usage or bad input. It is a ValueError too, so that callers may catch it as Python has it."""

    exit_code: ClassVar[int] = 2


class CheckpointError(InputError):
    """A file cannot be read as a checkpoint, or lacks required content."""


class PairingError(InputError):
    """Two checkpoints do not belong together."""


class AdapterError(InputError):
    """A file is not a supported adapter, or does not fit the model."""


class WrongBaseError(InputError):
    """An adapter was made from another base."""


class PatternError(InputError):
    """A name pattern is malformed or matches nothing."""


class ConfigError(InputError):
    """A configuration key, value or combination is invalid."""


class ImageError(InputError):
    """An image or mask cannot be read or does not fit."""


class DataError(InputError):
    """A data set cannot be read, or has too many corrupt samples."""


class OutputError(InputError):
    """An output path cannot or must not be written."""


class HubError(LbmLoraError):
    """A hub repository cannot be reached or does not exist."""

    exit_code: ClassVar[int] = 2


class MissingExtraError(LbmLoraError):
    """An optional dependency is not installed."""

    exit_code: ClassVar[int] = 2


class QualityError(LbmLoraError):
    """The command ran, but its result misses the requested limit or lacks a part."""

    exit_code: ClassVar[int] = 1


def listing(names: Iterable[str], *, limit: int = 8) -> str:
    """Join names for an error message: the first `limit`, then how many more there are."""
    shown = list(names)
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def plural(count: int, noun: str, several: str = "") -> str:
    """`1 module`, `792 modules`, `1,676 tensors`, `2 matrices`.

    Args:
        several: the plural, where it is not made with an s.
    """
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def need_packages(what: str, packages: Iterable[str], extra: str) -> None:
    """Check that the optional packages of a feature are installed; the error names all that are missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise missing_extra(what, missing, extra)


def missing_extra(what: str, missing: Sequence[str], extra: str) -> MissingExtraError:
    """Return the error for work that needs optional packages, with the command that installs them."""
    named = f"{', '.join(missing[:-1])} and {missing[-1]}, which are" if len(missing) > 1 else f"{missing[0]}, which is"
    return MissingExtraError(f'{what} needs {named} not installed. Run: pip install "lbm-lora[{extra}]"')


def give_one(one: str, other: str, what: str) -> ConfigError:
    """Return the error for two options that both do the same thing."""
    return ConfigError(Option(one), " and ", Option(other), f" both {what}. Give one of them.")


def home_path(text: str | Path) -> Path:
    """Return the path that a text names: `~` is a home folder where a shell has not replaced it, as in `'~/x'`.

    `./~/x` is in a folder called `~`.
    """
    try:
        return Path(text).expanduser() if str(text).startswith("~") else Path(text)
    except RuntimeError:  # a user that nobody knows: then it is a name like any other
        return Path(text)


def real_path(path: Path) -> Path:
    """Resolve links in a path; if they form a loop or the name is invalid, return it absolute but unresolved.

    A relative path stays as it is if the current folder was removed.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return absolute_path(path)


def with_name(path: Path) -> Path:
    """Return the path of a file or folder by its own name, which `.` and `..` are not."""
    return path if path.name not in ("", "..") else real_path(path)


def absolute_path(path: Path) -> Path:
    """Return the path from the root, links and all; as it is if the current folder was removed."""
    try:
        return path.absolute()
    except FileNotFoundError:
        return path


def not_there(path: Path, suffixes: Collection[str] = ()) -> str:
    """`x/model.ckpt does not exist. Did you mean x/model.safetensors?`: the first sentences of an error.

    Args:
        suffixes: suffixes of usable files, lower case with the dot; by default every name is a candidate.
    """
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which does not exist."
    text = f"{path} does not exist."
    missing = path
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent  # the first missing part of the path
    folder = missing.parent
    if missing != path:
        near = _nearest(missing.name, [entry for entry in _entries(folder) if entry.is_dir()])
        return f"{text} There is no folder {missing}.{f' Did you mean {folder / near}?' if near else ''}"
    entries = _entries(folder)
    files = [entry.name for entry in entries if entry.suffix.lower() in suffixes and entry.is_file()]
    near = _nearest(path.name, [entry for entry in entries if not suffixes or entry.name in files or entry.is_dir()])
    if near:
        return f"{text} Did you mean {folder / near}?"
    return f"{text} The folder {folder} has {listing(files)}." if files else f"{text} {held_by(folder)}"


def held_by(folder: Path) -> str:
    """`The folder x holds 12 .png files, 2 folders and more.`, or that it is empty."""
    if not os.access(folder, os.R_OK):
        return f"The folder {folder} cannot be read."
    entries = _entries(folder)
    counts = Counter("folder" if entry.is_dir() else f"{entry.suffix.lower()} file".strip() for entry in entries)
    kinds = ", ".join(plural(count, kind) for kind, count in counts.most_common(_MOST_KINDS))
    more = " and more" if len(counts) > _MOST_KINDS else ""
    return f"The folder {folder} holds {kinds}{more}." if kinds else f"The folder {folder} is empty."


def _entries(folder: Path) -> list[Path]:
    if not os.access(folder, os.R_OK):
        return []
    shown = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(islice(shown, _MOST_LOOKED_AT))


def _nearest(name: str, entries: Collection[Path]) -> str:
    """Return the entry whose name is nearest, else that of the same stem (`model.safetensors` for `model.ckpt`)."""
    # stems, since a long extension in common makes any two names alike
    by_stem = {entry.stem.lower(): entry.name for entry in reversed(list(entries))}
    wanted = Path(name.lower())
    by_stem |= {entry.stem.lower(): entry.name for entry in entries if entry.suffix.lower() == wanted.suffix}
    close = get_close_matches(wanted.stem, by_stem, n=1, cutoff=0.6)
    return by_stem[close[0]] if close else ""
