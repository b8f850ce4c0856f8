"""The texts that the troubleshooting page is searched by are texts of ours."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.+?)`(?: \((.+)\))?$", PAGE, flags=re.MULTILINE)


def texts() -> str:
    """Every string of the sources, parts of f-strings joined by a blank."""
    found: list[str] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


TEXTS = texts()


def test_there_are_many() -> None:
    assert len(HEADINGS) >= 15


@pytest.mark.parametrize("fragment", [fragment for fragment, origin in HEADINGS if not origin])
def test_a_heading_quotes_a_text_of_the_sources(fragment: str) -> None:
    assert fragment in TEXTS


def test_other_headings_say_where_their_text_is_from() -> None:
    assert {origin for _, origin in HEADINGS} == {"", "from torch", "from the system"}
