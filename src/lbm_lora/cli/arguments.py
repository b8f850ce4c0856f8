"""Parse the words of a command line into values of a config's fields. An error is one line, with the remedy.

`-` and `_` in a flag are the same. `--flag value` and `--flag=value`; a switch is `--flag` or `--no_flag`; a flag that
takes several values takes all words up to the next flag. A word that starts with `--` is a flag, any other, such as a
negative number, is a value.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lbm_lora.cli.flags import Flag
from lbm_lora.errors import ConfigError, home_path, listing

Given = tuple[str, list[str]]
"""A flag as it was written, `--rank` or `--rank=8`, and the words behind it. Words before every flag have ``."""


def grouped(words: Sequence[str]) -> list[Given]:
    """Return each flag with the words after it."""
    groups: list[Given] = [("", [])]
    for word in words:
        if word.startswith("--") or word == "-h":
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
    return groups if groups[0][1] else groups[1:]


def is_asked_for_help(words: Sequence[str]) -> bool:
    """Whether `-h` or `--help` is among the words."""
    return "-h" in words or "--help" in words


def values_of(flags: Sequence[Flag], words: Sequence[str], *, command: str) -> dict[str, Any]:
    """Return the name and value of every given flag.

    Args:
        command: for messages.

    Raises:
        ConfigError: a flag is unknown, or has no value or too many, a value is invalid, a word that belongs to no flag,
            or a required flag is missing.
    """
    named = {flag.name: flag for flag in flags if not flag.is_positional}
    positional = next((flag for flag in flags if flag.is_positional), None)
    values: dict[str, Any] = {}
    loose: list[str] = []
    for written, behind in grouped(words):
        if not written:
            loose += behind
            continue
        flag, is_on, given = _found(written, named, command)
        if positional is not None and not flag.takes_several:
            room = 0 if flag.is_switch or given else 1
            behind, rest = behind[:room], behind[room:]
            loose += rest
        taken = [*given, *behind]
        if flag.takes_several and flag.name in values:
            raise ConfigError(f"{flag.shown} is given twice. Put all its values after one {flag.shown}.")
        values[flag.name] = _switched(flag, is_on, taken) if flag.is_switch else _value(flag, taken)
    if loose:
        values |= _positional(positional, loose, command)
    _check_required(flags, values, command)
    return values


def _found(written: str, named: dict[str, Flag], command: str) -> tuple[Flag, bool, list[str]]:
    """Return the flag that was written, whether it is switched on, and the value after its `=`."""
    name, equals, value = written.removeprefix("--").partition("=")
    name = name.replace("-", "_")
    given = [value] if equals else []
    if name in named:
        return named[name], True, given
    positive = named.get(name.removeprefix("no_"))
    if positive is not None and positive.is_switch:
        return positive, False, given
    if positive is not None:
        raise ConfigError(f"--{name}: {positive.shown} takes a value and cannot be switched off. Leave it out.")
    raise ConfigError(unknown_flag(name, named.values(), command))


def unknown_flag(name: str, flags: Iterable[Flag], command: str) -> str:
    """Return the error for a flag that a command does not have, with the nearest one."""
    names = [one for flag in flags for one in ([flag.name, f"no_{flag.name}"] if flag.is_switch else [flag.name])]
    begun = [one for one in names if name and one.startswith(name)]
    near = begun or get_close_matches(name, names, n=1, cutoff=0.6)
    if len(near) > 1:
        return f"--{name} is short for several flags of {command}: {listing([f'--{one}' for one in near])}. Write one."
    hint = f"Did you mean --{near[0]}?" if near else f"`lbm-lora {command} --help` lists its flags."
    return f"--{name} is not a flag of {command}. {hint}"


def _switched(flag: Flag, is_on: bool, words: list[str]) -> bool:
    if words:
        raise ConfigError(
            f"--{flag.name} takes no value, got '{words[0]}'. Write --{flag.name} or --no_{flag.name} alone."
        )
    return is_on


def _value(flag: Flag, words: list[str]) -> Any:
    if not words:
        raise ConfigError(f"{flag.shown} needs a value: {flag.shown} {flag.word}.")
    if flag.takes_several:
        return tuple(_one(flag, word) for word in words)
    if len(words) > 1:
        raise ConfigError(f"'{words[1]}' belongs to no flag: {flag.shown} takes one value, here '{words[0]}'.")
    return _one(flag, words[0])


def _one(flag: Flag, word: str) -> Any:
    if not word:
        raise ConfigError(f"{flag.shown} needs a value, got an empty text.")
    if flag.choices and word not in flag.choices:
        raise ConfigError(_bad_choice(flag, word))
    if flag.takes_text and "=" in word:
        return word
    if flag.kind is int or flag.kind is float:
        return _number(flag, word, flag.kind)
    return home_path(word) if flag.kind is Path else word


def _bad_choice(flag: Flag, word: str) -> str:
    near = get_close_matches(word.lower(), flag.choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{flag.shown} must be {alternatives(flag.choices)}, got '{word}'.{hint}"


def _number(flag: Flag, word: str, kind: Callable[[str], float]) -> float:
    try:
        value = kind(word)
    except ValueError:
        value = math.nan
    bounds = flag.bounds
    if not math.isfinite(value) or (bounds and not bounds.least <= value <= bounds.most):
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{flag.shown} must be {what}{range_of(flag)}, got '{word}'.")
    return value


def range_of(flag: Flag) -> str:
    """` from 1`, ` from 0 to 1`, or nothing."""
    if flag.bounds is None:
        return ""
    least, most = (str(one) if isinstance(one, int) else f"{one:g}" for one in (flag.bounds.least, flag.bounds.most))
    return f" from {least}" + (f" to {most}" if math.isfinite(flag.bounds.most) else "")


def alternatives(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _positional(flag: Flag | None, words: list[str], command: str) -> dict[str, Any]:
    if flag is None:
        raise ConfigError(f"'{words[0]}' belongs to no flag. `lbm-lora {command} --help` lists the flags.")
    return {flag.name: _value(flag, words)}


def _check_required(flags: Iterable[Flag], values: dict[str, Any], command: str) -> None:
    missing = [flag.usage for flag in flags if flag.is_required and flag.name not in values]
    if missing:
        *most, last = missing
        listed = f"{', '.join(most)} and {last}" if most else last
        raise ConfigError(f"{command} needs {listed}. `lbm-lora {command} --help` explains {'them' if most else 'it'}.")
