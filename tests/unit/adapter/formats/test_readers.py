"""Every format says who reads it."""

from pathlib import Path
from typing import get_args

from lbm_lora.adapter.formats.readers import READERS, calls_of
from lbm_lora.configs.values import ForeignFormat, FormatName


def test_every_format_has_a_reader() -> None:
    assert list(READERS) == list(get_args(FormatName))
    assert set(get_args(FormatName)) == {"native", *get_args(ForeignFormat)}
    assert all(line.isascii() and line[-1] not in ".," for line in map(calls_of, READERS))


def test_the_page_on_files_has_the_same_table() -> None:
    page = (Path(__file__).parents[4] / "docs" / "files.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    programs = next(row for row in rows if row[:2] == ["format", "ComfyUI"])[1:]
    for name, readers in READERS.items():
        row = next(row for row in rows if row[0].strip("`") == name and len(row) == len(programs) + 1)
        said = {program for program, cell in zip(programs, row[1:], strict=True) if cell != "no"}
        assert said == {reader.program for reader in readers} - {"lbm-lora"}, name
