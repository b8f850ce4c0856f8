"""The flags of every command with their defaults, as flags.txt lists them: one that comes or goes is seen in review.

The list is made of what the command line hands to tyro, and checked against the help that a user gets.
"""

import re
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from unittest.mock import patch

import pytest
from tyro.conf import Positional, Suppress

from lbm_lora.cli import main

COMMANDS = (*main.COMMANDS, "infer --source_shards")
SNAPSHOT = Path(__file__).with_name("flags.txt")


class Handed(Exception):
    """What was handed to tyro."""

    def __init__(self, call: Any, *, description: str, **_: Any) -> None:
        super().__init__()
        self.call, self.description = call, description


def raise_handed(call: Any, **settings: Any) -> None:
    raise Handed(call, **settings)


@cache
def flags_of(command: str) -> dict[str, str]:
    """Flag, or POSITIONAL -> its default; `(required)` where it has none.

    Args:
        command: its words, and the flag that makes it another one.
    """
    with patch.object(main.tyro, "cli", raise_handed), pytest.raises(Handed) as caught:
        main.parse(*parts_of(command))
    call = get_args(caught.value.call)[0]  # without OmitArgPrefixes
    flags: dict[str, str] = {}
    for part in get_type_hints(call).values():
        hints = get_type_hints(part, include_extras=True)
        for field in fields(part):
            markers = get_args(hints[field.name])[1:] if get_origin(hints[field.name]) else ()
            if not is_marked(markers, Suppress):
                positional = is_marked(markers, Positional)
                flags[field.name.upper() if positional else f"--{field.name}"] = spelt(field)
    keys = re.findall(r"^  --(\S+) (.*)$", caught.value.description, re.MULTILINE)  # of a training file
    return flags | {f"--{key}": default for key, default in keys}


def parts_of(command: str) -> tuple[str, list[str]]:
    words, *flags = command.split(" --")
    return words, [f"--{flag}" for flag in flags]


def is_marked(markers: tuple[Any, ...], marker: Any) -> bool:
    return any(one in (marker, *get_args(marker[int])[1:]) for one in markers)


def spelt(field: Field[Any]) -> str:
    """A default as a user would write it."""
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if default is MISSING:
        return "(required)"
    if default is None or default == ():
        return "(none)"
    if isinstance(default, bool):
        return str(default).lower()
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def test_the_flags_are_those_of_the_list() -> None:
    lines = [f"{command}: {flag} {default}" for command in COMMANDS for flag, default in flags_of(command).items()]
    assert "\n".join(lines) + "\n" == SNAPSHOT.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_these_flags_and_no_others(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main.main([*command.split(), "--help"])
    found = re.findall(r"^\W*(?:-h, )?(--[a-z][\w]*)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(found) == sorted(["--help", *(flag for flag in flags_of(command) if flag.startswith("--"))])
