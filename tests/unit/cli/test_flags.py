"""The flags of every command with their defaults, as flags.txt lists them: one that comes or goes is seen in review."""

import re
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Literal

import pytest

from lbm_lora.cli.flags import Bounds, Flag, flags_of
from lbm_lora.cli.help import spelt
from lbm_lora.cli.main import Output, main
from lbm_lora.cli.training_keys import training_sections
from lbm_lora.verbs import VERBS, verb_named
from lbm_lora.verbs.options import ADVANCED, HIDDEN, POSITIONAL, Count, FlagName, Mark, Named, Several, Share

LINES = tuple(VERBS)
SNAPSHOT = Path(__file__).with_name("flags.txt")


def listed(line: str) -> tuple[Flag, ...]:
    """Return all flags of a command."""
    keys = [key for section in training_sections().values() for key in section] if line == "train" else []
    return (*flags_of(verb_named(line).function), *flags_of(Output), *keys)


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


def make(
    folder: Annotated[Path, POSITIONAL, Named("IN")],
    number: Annotated[Count, FlagName("count")] = 3,
    *,
    where: Annotated[Path | None, Named("FOLDER"), ADVANCED] = None,
    shares: Several[Share] = (),
    kind: Literal["one", "other"] = "one",
    check: bool = True,
    secret: Annotated[int, HIDDEN] = 0,
    progress: object = None,
) -> None:
    """Make it.

    Args:
        number: How many, at most,
            with `check=False`.
    """


def test_a_flag_is_made_of_a_parameter_its_type_its_marks_and_its_text() -> None:
    folder, count, where, shares, kind, check = flags_of(make)
    assert (count.name, count.kind, count.usage, count.default) == ("count", int, "--count N", 3)
    assert (count.about, count.bounds, count.parameter) == ("How many, at most, with --no_check.", Bounds(1), "number")
    assert (where.kind, where.usage, where.marks) == (Path, "--where FOLDER", {Mark.ADVANCED})
    assert (folder.shown, folder.is_positional, folder.is_required, folder.default) == ("IN", True, True, MISSING)
    assert (shares.kind, shares.takes_several, shares.usage) == (float, True, "--shares SHARE ...")
    assert shares.bounds == Bounds(0, 1)
    assert (kind.choices, kind.usage) == (("one", "other"), "--kind one|other")
    assert (check.is_switch, check.usage) == (True, "--check")
    assert not any(flag.takes_text for flag in flags_of(make))


def test_a_number_or_a_text_is_a_number_that_takes_text() -> None:
    flag = next(flag for flag in flags_of(verb_named("fuse").function) if flag.name == "lora_scale")
    assert (flag.kind, flag.takes_text, flag.usage) == (float, True, "--lora_scale SCALE ...")
