"""Tables, lists of facts and paragraphs as lines of plain text, laid out by rich.

The width is fixed and there are no colours: a terminal, a file and a pipe get the same text. Every control character
is escaped (`printable`), since names come from files of others. Text that is too long for its column continues
on the next line.
"""

import io
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from lbm_lora.report.wording import printable

WIDTH = 100
"""Columns of a text, at most."""

INDENT = 2
"""Columns before everything that belongs to a heading."""

_LABEL = 31  # columns of the label of a fact: as long as the documented "Perfect matches (error < 0.001)"
_GAP = 2  # columns between two columns of a table


def words(head: str = "") -> Column:
    """A column of text, which stands to the left and is folded where the table would be too wide."""
    return Column(head, overflow="fold")


def numbers(head: str = "") -> Column:
    """A column of numbers, which stand to the right and are never cut."""
    return Column(head, justify="right", no_wrap=True)


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, width: int = WIDTH) -> list[str]:
    """The heads, where there are any, and a line for each row, or several where a cell is folded; [] without rows."""
    return _laid_out(columns, rows, gap=_GAP, width=width)


def facts(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Labels, and beside them the values, all in one column."""
    return _laid_out([Column(width=_LABEL, overflow="fold"), words()], pairs, gap=1, width=WIDTH)


def paragraph(text: str, *, indent: int = INDENT) -> list[str]:
    """A text broken at its spaces."""
    return _lines(Text(printable(text), overflow="fold"), indent, WIDTH)


def _laid_out(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, gap: int, width: int) -> list[str]:
    head = any(column.header for column in columns)
    grid = Table(*columns, box=None, padding=(0, gap, 0, 0), pad_edge=False, show_header=head)
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    return _lines(grid, INDENT, width) if grid.row_count else []


def _lines(shown: RenderableType, indent: int, width: int) -> list[str]:
    console = Console(
        width=width,
        height=25,
        file=io.StringIO(),
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
        color_system=None,
        _environ={},
    )
    with console.capture() as captured:
        console.print(Padding(shown, (0, 0, 0, indent), expand=False))
    return [line.rstrip() for line in captured.get().splitlines()]
