"""The pages for people: their links lead somewhere, and every decision is in the index."""

import re
from pathlib import Path

import pytest

from lbm_lora.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "examples" / "README.md",
        ROOT / ".github" / "pull_request_template.md",
    ]
)
MADE = {ROOT / "docs/commands" / f"{name}.md" for name in ("index", *(name.replace(" ", "-") for name in COMMANDS))}
"""Pages that only the site has; see tools/site_pages.py."""
DECISIONS = ROOT / "docs" / "decisions"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_linked_files_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    paths = [(page.parent / link).resolve() for link in links if not link.startswith("http")]
    assert [path for path in paths if not path.exists() and path not in MADE] == []


def test_every_decision_is_in_the_index() -> None:
    page = (DECISIONS / "README.md").read_text(encoding="utf-8")
    index = re.findall(r"\| (\d+) \| \[(.+)\]\((.+\.md)\) \| .+ \|", page)
    records = sorted(DECISIONS.glob("0*.md"))
    titles = [path.read_text(encoding="utf-8").splitlines()[0] for path in records]
    assert [f"# {number}. {title}" for number, title, _ in index] == titles
    assert [name for _, _, name in index] == [path.name for path in records]


def test_source_files_that_the_architecture_names_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = [name for name in re.findall(r"`([\w/]+\.py)`", page) if "/" in name and "NAME" not in name]
    assert len(named) > 10
    places = (ROOT, ROOT / "src" / "lbm_lora")
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []
