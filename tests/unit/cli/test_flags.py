"""The flags of every command with their defaults, as flags.txt lists them: one that comes or goes is seen in review."""

import re
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from lbm_lora.cli.commands import COMMANDS, command_for
from lbm_lora.cli.flags import Flag, flags_of
from lbm_lora.cli.help import spelt
from lbm_lora.cli.main import Output, main
from lbm_lora.cli.training_keys import training_sections
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.configs.marks import ADVANCED, HIDDEN, POSITIONAL, Bounds, Count, Mark, Named

LINES = (*COMMANDS, "infer --source_shards")
SNAPSHOT = Path(__file__).with_name("flags.txt")


def parts_of(line: str) -> tuple[str, list[str]]:
    words, *flags = line.split(" --")
    return words, [f"--{flag}" for flag in flags]


def listed(line: str) -> tuple[Flag, ...]:
    """All flags of a command.

    Args:
        line: its words, and the flag that makes it another one.
    """
    keys = [key for section in training_sections().values() for key in section] if line == "train" else []
    return (*flags_of(command_for(*parts_of(line)).config_class()), *flags_of(Output), *keys)


def default_of(flag: Flag) -> str:
    if flag.is_required:
        return "(required)"
    return "(none)" if flag.default in (None, (), {}) else spelt(flag.default)


def test_the_flags_are_those_of_the_list() -> None:
    lines = [f"{line}: {flag.shown} {default_of(flag)}" for line in LINES for flag in listed(line)]
    assert "\n".join(lines) + "\n" == SNAPSHOT.read_text(encoding="utf-8")


@pytest.mark.parametrize("line", LINES)
def test_the_help_has_these_flags_and_no_others(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), "--help"]) == 0
    found = re.findall(r"^  (--\w+|[A-Z]+)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(found) == sorted(flag.shown for flag in listed(line))


@pytest.mark.parametrize("line", LINES)
def test_every_flag_says_what_it_does_in_sentences(line: str) -> None:
    for flag in listed(line):
        assert flag.about.endswith("."), flag
        assert flag.about.isascii(), flag


@dataclass(frozen=True, kw_only=True)
class Parent:
    count: Count = 3
    """How many,
    at most."""
    where: Annotated[Path | None, Named("FOLDER"), ADVANCED] = None
    """Where."""


@dataclass(frozen=True, kw_only=True)
class Child(Parent):
    folder: Annotated[Path, POSITIONAL, Named("IN")]
    shares: tuple[Annotated[float, Bounds(0, 1)], ...] = ()
    """Which."""
    kind: Literal["one", "other"] = "one"
    check: bool = True
    secret: Annotated[int, HIDDEN] = 0


def test_a_flag_is_made_of_a_field_its_type_its_marks_and_its_docstring() -> None:
    count, where, folder, shares, kind, check = flags_of(Child)
    assert (count.name, count.kind, count.usage, count.default) == ("count", int, "--count N", 3)
    assert (count.about, count.bounds) == ("How many, at most.", Bounds(1))
    assert (where.kind, where.usage, where.marks) == (Path, "--where FOLDER", {Mark.ADVANCED})
    assert (folder.shown, folder.is_positional, folder.is_required, folder.default) == ("IN", True, True, MISSING)
    assert (shares.kind, shares.takes_several, shares.usage) == (float, True, "--shares NUMBER ...")
    assert shares.bounds == Bounds(0, 1)
    assert (kind.choices, kind.usage) == (("one", "other"), "--kind one|other")
    assert (check.is_switch, check.usage) == (True, "--check")
    assert not any(flag.takes_text for flag in flags_of(Child))


def test_a_number_or_a_text_is_a_number_that_takes_text() -> None:
    flag = next(flag for flag in flags_of(FuseConfig) if flag.name == "lora_scale")
    assert (flag.kind, flag.takes_text, flag.usage) == (float, True, "--lora_scale SCALE ...")
