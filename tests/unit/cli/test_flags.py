"""The flags of every command with their defaults, as flags.txt lists them: one that comes or goes is seen in review."""

import re
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval

from lbm_lora.cli.commands import COMMANDS, command_for
from lbm_lora.cli.flags import Flag, flags_of, flags_of_verb
from lbm_lora.cli.help import spelt
from lbm_lora.cli.main import Output, main
from lbm_lora.cli.training_keys import training_sections
from lbm_lora.verbs.options import ADVANCED, HIDDEN, POSITIONAL, Count, Doc, FlagName, Named, Several
from lbm_lora.verbs.verb import Verb

LINES = (*COMMANDS, "infer --source_shards")
SNAPSHOT = Path(__file__).with_name("flags.txt")


def listed(line: str) -> tuple[Flag, ...]:
    """All flags of a command.

    Args:
        line: its words, and the flag that makes it another one.
    """
    words, *flags = line.split(" --")
    command = command_for(words, [f"--{flag}" for flag in flags])
    own = flags_of_verb(command.function) if isinstance(command, Verb) else flags_of(command.config_class())
    keys = [key for section in training_sections().values() for key in section] if line == "train" else []
    return (*own, *flags_of(Output), *keys)


def default_of(flag: Flag) -> str:
    if flag.is_required:
        return "(required)"
    return "(none)" if flag.default in (None, (), {}) else spelt(flag.default)


def test_the_flags_are_those_of_the_list() -> None:
    lines = [f"{line}: {flag.shown} {default_of(flag)}" for line in LINES for flag in listed(line)]
    assert sorted(lines) == sorted(SNAPSHOT.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("line", LINES)
def test_the_help_has_these_flags_and_says_in_sentences_what_each_does(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--help"]) == 0
    found = re.findall(r"^  (--\w+|[A-Z]+)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(found) == sorted(flag.shown for flag in listed(line))
    for flag in listed(line):
        assert flag.about.endswith("."), flag
        assert flag.about.isascii(), flag


def made(
    folder: Annotated[Path, POSITIONAL, Named("IN")],
    *,
    count: Annotated[Count, Doc("How many. Not with `check=False`.")] = 3,
    shares: Several[Annotated[float, Interval(ge=0, le=1)]] = (),
    scale: Annotated[float | str, FlagName("lora_scale")] = 1.0,
    where: Annotated[Path | None, Named("FOLDER"), ADVANCED] = None,
    kind: Literal["one", "other"] = "one",
    check: bool = True,
    secret: Annotated[Any, HIDDEN] = 0,
) -> None:
    """Make something.

    Args:
        where: Where, for each
            of `count`.
    """


def test_a_flag_is_made_of_a_parameter_its_type_its_marks_and_its_text() -> None:
    folder, count, shares, scale, where, kind, check = flags_of_verb(made)
    assert (folder.shown, folder.is_positional, folder.is_required, folder.default) == ("IN", True, True, MISSING)
    assert (count.name, count.kind, count.usage, count.default) == ("count", int, "--count N", 3)
    assert (count.about, where.about) == ("How many. Not with --no_check.", "Where, for each of --count.")
    assert count.bounds is not None
    assert count.bounds.least == 1
    assert (where.kind, where.usage, where.is_advanced) == (Path, "--where FOLDER", True)
    assert (shares.kind, shares.takes_several, shares.usage) == (float, True, "--shares NUMBER ...")
    assert shares.bounds is not None
    assert (shares.bounds.least, shares.bounds.most) == (0, 1)
    assert (scale.name, scale.parameter, scale.kind, scale.takes_text) == ("lora_scale", "scale", float, True)
    assert (kind.choices, kind.usage) == (("one", "other"), "--kind one|other")
    assert (check.is_switch, check.usage) == (True, "--check")
