"""The pages of the site that are made: every command with every flag, and links that lead somewhere."""

import re
from pathlib import PurePosixPath

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

from lbm_lora.cli.flags import flags_of
from lbm_lora.verbs import VERBS, verb_named
from tools.site_pages import broken, command_page, commands_index, prose, rewritten, slug, target


@pytest.mark.parametrize("name", VERBS)
def test_a_page_has_every_flag_and_every_example(name: str) -> None:
    page = command_page(name, verb_named(name))
    named = re.findall(r'<span id="flag-(\w+)">', page)
    assert set(named) >= {flag.name for flag in flags_of(verb_named(name).function)} | {"json", "threads"}
    assert len(named) == len(set(named))
    lines = [" ".join(line.split()) for line in page.replace("\\\n", " ").splitlines()]
    assert set(lines) >= set(verb_named(name).examples)


def test_the_page_of_train_has_the_keys_of_its_file() -> None:
    assert '<span id="flag-lora_rank">' in command_page("train", verb_named("train"))


def test_rows_of_tables_have_four_cells() -> None:
    for name in VERBS:
        lines = [line for line in command_page(name, verb_named(name)).splitlines() if line.startswith("| ")]
        assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {6}


def test_the_index_lists_all() -> None:
    links = re.findall(r"\]\(([\w-]+)\.md\)", commands_index())
    assert set(links) >= {slug(name) for name in VERBS}


def test_signs_of_markdown_stay_signs() -> None:
    said = prose("a quoted glob ('pairs/*.source.png'), see `--a_b *` and --lora_path of NAME_compare <x>")
    assert said == r"a quoted glob ('pairs/\*.source.png'), see `--a_b *` and `--lora_path` of `NAME_compare` \<x>"


def test_a_long_line_breaks_before_flags() -> None:
    line = "lbm-lora extract " + " ".join(f"--flag_{at} some_value_of_it" for at in range(6))
    assert all(len(part) <= 90 for part in broken(line).splitlines())
    assert broken(line).replace(" \\\n  ", " ") == line


def test_links_that_leave_the_folder_lead_to_the_site() -> None:
    page = PurePosixPath("docs/concepts/index.md")
    text = (
        "[a](../../CONTRIBUTING.md) [b](lora.md) [c](../../README.md#install) [d](https://x.org) [e](../../nothing.md)"
    )
    assert rewritten(text, page) == (
        "[a](../project/CONTRIBUTING.md) [b](lora.md) [c](../index.md#install) [d](https://x.org) [e](../../nothing.md)"
    )
    assert rewritten("[a](docs/files.md)", PurePosixPath("CONTRIBUTING.md")) == "[a](../files.md)"


def test_a_folder_stands_for_its_readme() -> None:
    assert target(PurePosixPath("README.md"), "docs/decisions/") == PurePosixPath("docs/decisions/README.md")
    assert target(PurePosixPath("docs/files.md"), "../../outside.md") is None
