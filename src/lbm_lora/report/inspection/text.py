"""An inspection as text that fits one screen: at most 40 lines of 80 columns."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.table import Column

from lbm_lora.errors import Spelling
from lbm_lora.report.inspection.adapter_values import BlockFacts
from lbm_lora.report.inspection.relation_wording import difference_lines, fit_lines
from lbm_lora.report.inspection.relations import BlockDifference, Difference, Inspection
from lbm_lora.report.inspection.values import FileFacts
from lbm_lora.report.inspection.wording import Facts, file_facts_of, file_line, header_lines
from lbm_lora.report.text.tables import numbers, table, words
from lbm_lora.report.wording import megabytes, percent, plural, printable, share, shortened

WIDTH, HEIGHT = 80, 40
_LABEL = 13  # `for diffusers`
_LEAST_BLOCKS = 6
_LARGEST = 10
_KEY, _VALUE = 26, 48

_SAID = ("lbm_lora_format", "lbm_lora_base_fingerprint", "lbm_lora_tuned_fingerprint", "lbm_lora_counts")
"""Entries of the header that the facts repeat."""

Block = TypeVar("Block", BlockFacts, BlockDifference)


def screen(inspection: Inspection, spelling: Spelling = str) -> str:
    """The text of one file, or of how two differ.

    Args:
        spelling: of options in the reason why a file is not read.
    """
    if inspection.other is None:
        return "\n".join(_one(inspection, spelling))
    return "\n".join(_two(inspection, inspection.other))


def _one(inspection: Inspection, spelling: Spelling) -> list[str]:
    file = inspection.file
    fit = _facts(fit_lines(inspection.fit)) if inspection.fit else []
    lines = [*_title(file), *_facts(file_facts_of(file, spelling)), *fit]
    found = file.adapter or file.checkpoint
    if found is not None and found.blocks:
        lines += ["", *block_table(found.blocks, HEIGHT - len(lines) - 1, has_ranks=file.adapter is not None)]
    return [*lines, *_header(file, HEIGHT - len(lines))]


def _two(inspection: Inspection, other: FileFacts) -> list[str]:
    lines = [*_title(inspection.file), *_title(other)]
    if inspection.fit is not None:
        return [*lines, *_facts(fit_lines(inspection.fit))]
    if inspection.difference is None:
        return [*lines, *_facts([("result", "files of these two kinds cannot be compared")])]
    difference = inspection.difference
    lines += _facts(difference_lines(difference))
    if difference.is_same:
        return lines
    lines += ["", *_block_differences(difference.blocks, HEIGHT - len(lines) - _LARGEST - 3)]
    return [*lines, "", *_largest(difference, _LARGEST)]


def _title(file: FileFacts) -> list[str]:
    name = shortened(printable(file.path.name or str(file.path)), WIDTH - 2)
    line = f"{name}: {file_line(file)}"
    return [line] if len(line) <= WIDTH else [f"{name}:", f"  {file_line(file)}"]


def _facts(facts: Facts) -> list[str]:
    return table([Column(width=_LABEL, overflow="fold"), words()], facts, width=WIDTH)


def block_table(blocks: Sequence[BlockFacts], room: int, *, has_ranks: bool) -> list[str]:
    """Each block with its bytes and norm; the largest ones where there is not room for all."""
    shown = _first(blocks, room, lambda block: block.norm)
    heads = [_names("block"), *map(numbers, ("tensors", "bytes", "norm", "of norm²"))]
    cells = [
        [
            shortened(printable(block.block), 20),
            f"{block.tensors:,}",
            _nbytes(block.nbytes),
            f"{block.norm:.3g}",
            share(block.share),
            *([_count(block.ranks), _count(block.ranks_90), _count(block.ranks_99)] if has_ranks else []),
        ]
        for block in shown
    ]
    heads += [numbers("ranks"), numbers("90 %"), numbers("99 %")] if has_ranks else []
    return [*table(heads, cells, width=WIDTH), *_more(len(blocks) - len(shown), "block")]


def _names(head: str) -> Column:
    """A column of names, which are short enough to need no folding."""
    return Column(head, no_wrap=True)


def _nbytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.2f} GB" if nbytes >= 1e9 else megabytes(nbytes)


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _block_differences(blocks: Sequence[BlockDifference], room: int) -> list[str]:
    shown = _first(blocks, room, lambda block: block.relative)
    heads = [_names("block"), *map(numbers, ("tensors", "same bits", "difference", "cosine"))]
    cells = [
        [
            shortened(printable(block.block), 20),
            f"{block.tensors:,}",
            f"{block.same:,}",
            percent(block.relative),
            f"{block.cosine:.4f}",
        ]
        for block in shown
    ]
    return [*table(heads, cells, width=WIDTH), *_more(len(blocks) - len(shown), "block")]


def _largest(difference: Difference, count: int) -> list[str]:
    """The parameters with the largest differences, by norm."""
    changed = [row for row in difference.rows if row.match != "same"]
    rows = sorted(changed, key=lambda row: -_ordered(row.norm))[:count]
    heads = [_names("largest differences"), numbers("norm"), numbers("relative")]
    cells = [
        [
            shortened(printable(row.name), 52),
            f"{row.norm:.3g}",
            percent(row.relative) if row.match == "different" else row.match,
        ]
        for row in rows
    ]
    return table(heads, cells, width=WIDTH)


def _header(file: FileFacts, room: int) -> list[str]:
    """The header's entries, each on one line, as many as there is room for."""
    entries = header_lines(file.header, left_out=_SAID)
    if not entries or room < 4:
        return []
    fitting = room - 2 if len(entries) <= room - 2 else room - 3
    cells = [(shortened(key, _KEY), _cut(value)) for key, value in entries[:fitting]]
    lines = table([Column(no_wrap=True), Column(no_wrap=True)], cells, width=WIDTH)
    return ["", "header", *lines, *_more(len(entries) - len(cells), "line")]


def _cut(value: str) -> str:
    return value if len(value) <= _VALUE else value[: _VALUE - 3] + "..."


def _first(blocks: Sequence[Block], room: int, weight: Callable[[Block], float]) -> list[Block]:
    """All blocks, or the heaviest of them in their order, for a table of `room` lines with its head."""
    fitting = max(_LEAST_BLOCKS, room - 1 if len(blocks) <= room - 1 else room - 2)
    heaviest = sorted(range(len(blocks)), key=lambda place: -_ordered(weight(blocks[place])))[:fitting]
    return [blocks[place] for place in sorted(heaviest)]


def _ordered(value: float) -> float:
    """A value to sort by: what is not finite comes first."""
    return value if math.isfinite(value) else math.inf


def _more(count: int, what: str) -> list[str]:
    return [f"  and {plural(count, what)} more (--json lists all)"] if count > 0 else []
