"""Tables, lists of facts and paragraphs as lines of plain text, laid out by rich.

The width of a text is fixed and there are no colours: a terminal, a file and a pipe get the same. Every control
character is escaped (`printable`), since names come from files of others. What is too long for its column continues on
the next line.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from markupsafe import Markup
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Column as RichColumn
from rich.table import Table
from rich.text import Text

from lbm_lora.report.wording import printable

WIDTH = 100
"""Columns of a text, at most."""

_INDENT = 2  # columns before everything that belongs to a heading
_LABEL = 31  # columns of the label of a fact: as long as the documented "Perfect matches (error < 0.001)"

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table, in a text and on a page (`templates/layout.html`).

    Attributes:
        cell: what it says of a row.
        screen: its head in a text; None: it is not there.
        page: its head on a page, where it is another; None: it is not there.
        css: its class on a page: `n` for a number, which stands to the right and is never broken.
        markup: the cell on a page, as HTML, where it is more than the text.
        value: the number that the page sorts by.
    """

    cell: Callable[[Row], str]
    screen: str | None
    page: str | None = ""
    css: str = "n"
    markup: Callable[[Row], Markup] | None = None
    value: Callable[[Row], float] | None = None


def words(head: str = "") -> RichColumn:
    """A column of text, which stands to the left and is folded where the table would be too wide."""
    return RichColumn(head, overflow="fold")


def numbers(head: str = "") -> RichColumn:
    """A column of numbers, which stand to the right and are never cut."""
    return RichColumn(head, justify="right", no_wrap=True)


def table(
    columns: Sequence[RichColumn], rows: Iterable[Sequence[str]], *, width: int = WIDTH, gap: int = 2
) -> list[str]:
    """The heads, where there are any, and a line for each row, or several where a cell is folded; [] without rows."""
    head = any(column.header for column in columns)
    grid = Table(*columns, box=None, padding=(0, gap, 0, 0), pad_edge=False, show_header=head)
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    return _lines(grid, _INDENT, width) if grid.row_count else []


def text_table(
    columns: Sequence[Column[Row]],
    rows: Iterable[Row],
    *,
    group: Callable[[Row], object] | None = None,
    foot: Sequence[str] = (),
    width: int = WIDTH,
) -> list[str]:
    """A table as lines of text.

    Args:
        group: of neighbours with one value, only the first has its first cell.
        foot: cells of a last line.
    """
    there = [column for column in columns if column.screen is not None]
    cells: list[list[str]] = []
    for _, members in groupby(rows, group) if group else [(None, rows)]:
        for number, row in enumerate(members):
            cells.append([column.cell(row) for column in there])
            if group and number:
                cells[-1][0] = ""
    heads = [(numbers if column.css.startswith("n") else words)(column.screen or "") for column in there]
    return table(heads, [*cells, *([foot] if foot else [])], width=width)


def facts(pairs: Iterable[tuple[str, str]], *, label: int = _LABEL, width: int = WIDTH, gap: int = 1) -> list[str]:
    """Labels, and beside them the values, all in one column."""
    return table([RichColumn(width=label, overflow="fold"), words()], pairs, width=width, gap=gap)


def paragraph(text: str, *, indent: int = _INDENT) -> list[str]:
    """A text broken at its spaces."""
    return _lines(Text(printable(text), overflow="fold"), indent, WIDTH)


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
