"""The command lines of README and docs are accepted as they stand, and the README's paths exist."""

import ast
import re
import shlex
from pathlib import Path
from textwrap import dedent

import pytest

import lbm_lora
from lbm_lora.cli.documented import SCRIPTS, completed
from lbm_lora.cli.main import COMMANDS, parse

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_lines(page: Path) -> list[list[str]]:
    """Every command of a page's shell blocks, split as a shell would."""
    blocks = re.findall(r"```bash[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in map(dedent, blocks) for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


LINES = [words for page in PAGES for words in command_lines(page)]


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """The command of a line, which may have two words, and its arguments."""
    count = 2 if " ".join(words[1:3]) in COMMANDS else 1
    return " ".join(words[1 : 1 + count]), words[1 + count :]


def test_every_command_is_shown() -> None:
    shown = {command_of(words)[0] for words in LINES if words[0] == "lbm-lora"}
    assert shown == set(COMMANDS)


def test_the_readme_leads_with_compress() -> None:
    first = next(words for words in command_lines(README) if words[0] == "lbm-lora")
    assert first[1] == "compress"


@pytest.mark.parametrize("words", [words for words in LINES if words[0] == "lbm-lora"], ids=lambda words: words[1])
def test_command_lines_parse(words: list[str]) -> None:
    command, arguments = command_of(words)
    parse(command, arguments)


@pytest.mark.parametrize(
    "words", [words for words in LINES if words[0] == "python" and words[1] != "-m"], ids=lambda words: words[1]
)
def test_script_lines_parse(words: list[str]) -> None:
    script = Path(words[1])
    assert (ROOT / script).is_file()
    if script.parent.name != "lora":
        return  # an example or a tool: has tests of its own
    command, defaults = SCRIPTS[script.stem]
    parse(command, completed(words[2:], defaults))


def test_python_uses_names_that_exist() -> None:
    blocks = [
        dedent(block)
        for page in PAGES
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    ]
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lbm_lora"
    }
    used |= {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "lbm_lora"
        for alias in node.names
    }
    assert {"LBMPipeline", "extract", "validate"} <= used <= set(lbm_lora.__all__)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in (words for words in LINES if words[0] == "make"):
        assert f"\n{words[1]}:" in makefile


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert missing == []
