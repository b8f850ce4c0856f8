"""The texts of --help: their parts, their width, and examples that a user can copy."""

import re
import shlex

import pytest

from lbm_lora.cli.help import NARROWEST, family_help, overview, spelt
from lbm_lora.cli.main import COMMANDS, help_of, main, parse
from lbm_lora.verbs import VERBS, verb_named
from lbm_lora.verbs.verb import GROUPS

ALL = {name: verb_named(name) for name in VERBS}
TYPED = {name: ALL[name] for name in COMMANDS}


def text_of(line: str, width: int = 80) -> str:
    name, _, flag = line.partition(" --")
    return help_of(name, [f"--{flag}"], width).plain


def test_the_overview_groups_the_commands() -> None:
    text = overview(TYPED).plain
    places = [text.index(f"\n{group}:\n") for group in GROUPS]
    assert places == sorted(places)
    assert all(re.search(rf"^  {name} +{re.escape(command.what)}$", text, re.M) for name, command in TYPED.items())
    assert "\n  demo " in text[places[0] : places[1]]


def test_a_family_lists_its_commands() -> None:
    family = {name: command for name, command in TYPED.items() if name.startswith("data ")}
    assert family_help("data", family).plain == (
        "usage: lbm-lora data pack|check ...\n\n"
        "  data pack   make WebDataset shards of a folder of pairs\n"
        "  data check  read a complete data set and report\n\n"
        "lbm-lora data COMMAND --help explains one of them."
    )


def test_a_help_has_the_required_flags_first_and_those_of_the_output_last() -> None:
    text = text_of("extract")
    headings = re.findall(r"^(\w.*):$", text, re.M)
    assert headings == ["required", "common", "advanced", "output", "examples"]
    assert text.startswith(
        "usage: lbm-lora extract --base_model_path CHECKPOINT\n      --tuned_model_path CHECKPOINT --save_to FILE"
    )
    assert "  --rank N\n      Rank of linear layers. 9999: as high as each matrix allows. Default: 32.\n" in text
    assert "  --dense, --no_dense\n" in text


@pytest.mark.parametrize("line", ALL)
def test_no_line_is_wider_than_asked_for_and_the_narrowest_help_names_the_same_flags(line: str) -> None:
    for width in (60, 80):
        text = text_of(line, width)
        assert max(map(len, text.splitlines())) <= width
        assert not re.search(r"\{None\}|\[\[|\(default|default: \)|None", text)
    flags = [set(re.findall(r"^  (--\w+)", text_of(line, width), re.M)) for width in (NARROWEST, 80)]
    assert flags[0] == flags[1] != set()


@pytest.mark.parametrize("columns", ["0", "24"])
def test_a_narrow_terminal_gets_a_help_of_forty_columns(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["train", "--help"]) == 0
    assert "--path_config" in capsys.readouterr().out


@pytest.mark.parametrize("line", ALL)
def test_examples_parse_and_can_be_copied(line: str) -> None:
    name = line.partition(" --")[0]
    examples = text_of(line).partition("\nexample")[2].partition("\n")[2].replace("\\\n", "")
    assert ALL[line].examples
    for example in ALL[line].examples:
        words = shlex.split(example)
        assert words[: 1 + len(name.split())] == ["lbm-lora", *name.split()]
        parse(name, words[1 + len(name.split()) :])
        assert "\0".join(words) in "\0".join(shlex.split(examples))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (1e-4, "0.0001"), ((1, 2), "1 2"), (True, "true"), ("bf16", "bf16"), ({"a": 1}, '{"a": 1}')],
)
def test_defaults_are_spelt_as_a_user_writes_them(value: object, text: str) -> None:
    assert spelt(value) == text
