"""Paths as they are typed, and what to say of a missing one: the nearest name in its folder, or what is there."""

import os
from collections import Counter
from collections.abc import Collection
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from lbm_lora.errors import listing, plural

_MOST_LOOKED_AT = 10_000  # entries of a folder: data sets may have millions
_MOST_KINDS = 3


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
    """The entry whose name is nearest, else the one of the same stem (`model.safetensors` for `model.ckpt`)."""
    # stems, since a long extension in common makes any two names alike
    by_stem = {entry.stem.lower(): entry.name for entry in reversed(list(entries))}
    wanted = Path(name.lower())
    by_stem |= {entry.stem.lower(): entry.name for entry in entries if entry.suffix.lower() == wanted.suffix}
    close = get_close_matches(wanted.stem, by_stem, n=1, cutoff=0.6)
    return by_stem[close[0]] if close else ""
