"""Write the measured part of docs/training.md from the newest results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.page import render
from benchmarks.results import FOLDER, ROOT, Result, Results, newest
from lbm_lora.files import write_text

RESULTS = FOLDER / "training"
PAGE = ROOT / "docs" / "training.md"
BEGIN = "<!-- measured:begin (python -m benchmarks.training page) -->\n"
END = "<!-- measured:end -->"


def write_page(results: Path = RESULTS, page: Path = PAGE) -> Path:
    """Write the part between the page's markers, and return the page's path.

    Raises:
        SystemExit: no result has been measured yet, or a marker is missing from the page.
    """
    found = newest(results, command="python -m benchmarks.training")
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"error: {page.name} lacks a marker of its measured part.")
    write_text(page, f"{before}{begin}{report(found)}{end}{after}")
    return page


def report(results: Results) -> str:
    """Return a section for each available result."""
    tables = {theme: rows(results[theme]) for theme, rows in _ROWS.items() if theme in results}
    return render("training.md.j2", results=results, tables=tables)


def _scratch(result: Result) -> list[tuple[str, ...]]:
    return [
        (name, f"{one['whole']:.2f}", f"{one['inside']:.2f}", f"{100 * one['better_than_source']:.0f} %")
        for name, one in result["summary"].items()
    ]


def _step_time(result: Result) -> list[tuple[str, ...]]:
    return [
        (name, f"{one['cpu_s']:.3f} s", _ratio(one, "cpu"), f"{one['wall_s']:.3f} s", _ratio(one, "wall"))
        for name, one in result["ways"].items()
    ]


def _ratio(way: Mapping[str, Any], clock: str) -> str:
    ratios = way[f"{clock}_ratios"]
    return f"{way[f'{clock}_ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


_ROWS = {"scratch": _scratch, "step_time": _step_time}
