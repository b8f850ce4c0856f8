"""A wheel as a user tries it: what a command says, and the row of the table."""

import sys
from pathlib import Path

import pytest

from tools.try_install import rows, tried

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for the programs are shell scripts")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A program that refuses everything but --help, and a Python that names two commands."""
    for name, code in {
        "lbm-lora": 'case "$*" in *--help) echo usage;; *) echo "error: $1 needs --to." >&2; exit 2;; esac',
        "python": "echo demo; echo 'data pack'",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_a_command_gives_its_code_its_line_and_its_seconds(programs: Path, tmp_path: Path) -> None:
    code, said, seconds = tried(programs, ["fuse"], tmp_path)
    assert (code, said) == (2, "error: fuse needs --to.")
    assert 0 < seconds < 60


def test_a_row_has_the_help_and_the_first_error_but_for_the_demo(programs: Path, tmp_path: Path) -> None:
    demo, pack = rows("bare", programs, tmp_path)
    assert demo.startswith("| demo | bare | 0, ")
    assert demo.endswith(" s | | |")
    assert pack.startswith("| data pack | bare | 0, ")
    assert pack.endswith(" s | error: data needs --to. |")
