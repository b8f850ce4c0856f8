"""Values by block and by layer, with the shade of each: a heat map as a table."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lbm_lora.report.inspection.adapter_values import DeltaFacts
from lbm_lora.report.inspection.blocks import norm_of
from lbm_lora.report.inspection.relations import TensorDifference
from lbm_lora.report.inspection.values import TensorFacts
from lbm_lora.report.wording import megabytes, plural

Row = TypeVar("Row", bound=DeltaFacts | TensorFacts | TensorDifference)

_BLOCKS, _LAYERS = 60, 40  # a hostile file can name thousands
_OTHERS = "others"
_SCALE = "Shades are logarithmic: none is left at a hundredth of the largest value."
_DECADES = 2.0  # below the largest value, at which a cell has no shade left


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One block and layer.

    Attributes:
        text: its value as a reader says it; empty for a cell without tensors.
        title: what the pointer shows.
        shade: 0 to 1.
    """

    text: str
    title: str
    shade: float


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A table of coloured cells: blocks by layers.

    Attributes:
        title: what is shown.
        about: how to read it, in one or two sentences.
        layers: the columns.
        rows: block -> its cells.
    """

    title: str
    about: str
    layers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def norm_map(rows: Sequence[DeltaFacts] | Sequence[TensorFacts], what: str) -> HeatMap:
    """Where the change or the weight is: the joint norm of each block and layer, on a logarithmic scale.

    Args:
        what: `change` or `weights`.
    """

    def cell(members: Sequence[DeltaFacts | TensorFacts]) -> tuple[float, str, str]:
        norm = norm_of(row.norm for row in members)
        nbytes = sum(row.nbytes for row in members)
        return norm, f"{norm:.3g}", f"{plural(len(members), 'tensor')}, {megabytes(nbytes)}, norm {norm:.5g}"

    about = f"The Frobenius norm of all tensors of a block and layer together. {_SCALE}"
    return _map(f"Norm of the {what}", about, list(rows), cell, _logarithmic)


def spectrum_map(deltas: Sequence[DeltaFacts]) -> HeatMap:
    """How far ranks are used: the share of them that carries 90 % of the energy."""

    def cell(members: Sequence[DeltaFacts]) -> tuple[float, str, str]:
        ranks, used = sum(one.rank or 0 for one in members), sum(one.rank_90 or 0 for one in members)
        share = used / ranks if ranks else math.nan
        title = f"{plural(len(members), 'module')}: 90 % of the energy in {used:,} of {ranks:,} ranks"
        return share, f"{100 * share:.0f}", title

    about = (
        "How many percent of the stored ranks carry 90 % of each delta's energy. Where it is low, the file can be made "
        "smaller at little cost; where it is near 90, the ranks are used evenly."
    )
    return _map("Ranks in use", about, [one for one in deltas if one.rank is not None], cell, dict)


def difference_map(rows: Sequence[TensorDifference]) -> HeatMap:
    """Where two files differ: the norm of the difference of each block and layer, on a logarithmic scale."""

    def cell(members: Sequence[TensorDifference]) -> tuple[float, str, str]:
        norm = norm_of(row.norm for row in members)
        same = sum(row.match == "same" for row in members)
        return norm, f"{norm:.3g}", f"{plural(len(members), 'tensor')}, {same:,} with the same bits; norm {norm:.5g}"

    changed = {row.block for row in rows if row.match != "same"}
    about = f"The Frobenius norm of the difference, of all tensors of a block and layer together. {_SCALE}"
    if len(changed) < len({row.block for row in rows}):
        about += " Blocks with the same bits in both are left out."
    return _map("Norm of the difference", about, [row for row in rows if row.block in changed], cell, _logarithmic)


def _map(
    title: str,
    about: str,
    rows: Sequence[Row],
    cell: Callable[[Sequence[Row]], tuple[float, str, str]],
    shades: Callable[[Iterable[tuple[tuple[str, str], float]]], dict[tuple[str, str], float]],
) -> HeatMap:
    blocks = _most_frequent((row.block for row in rows), _BLOCKS)
    names = _most_frequent((row.layer for row in rows), _LAYERS)
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        place = (row.block if row.block in blocks else _OTHERS, row.layer if row.layer in names else _OTHERS)
        grouped.setdefault(place, []).append(row)
    cells = {place: cell(members) for place, members in grouped.items()}
    shade = shades((place, value) for place, (value, _, _) in cells.items())
    layers = tuple(sorted({layer for _, layer in cells}, key=_layer_place))
    return HeatMap(
        title=title,
        about=about,
        layers=layers,
        rows=tuple(
            (block, tuple(_cell(cells.get((block, layer)), shade.get((block, layer), 0.0)) for layer in layers))
            for block in dict.fromkeys(block for block, _ in cells)
        ),
    )


def _most_frequent(names: Iterable[str], count: int) -> frozenset[str]:
    return frozenset(name for name, _ in Counter(names).most_common(count))


def _cell(found: tuple[float, str, str] | None, shade: float) -> Cell | None:
    return None if found is None else Cell(text=found[1], title=found[2], shade=shade if 0 <= shade <= 1 else 0.0)


def _logarithmic(values: Iterable[tuple[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """A shade for each value: 1 for the largest, 0 two decades below it."""
    listed = list(values)
    most = max((value for _, value in listed if 0 < value < math.inf), default=0.0)
    return {
        place: max(0.0, 1 + math.log10(value / most) / _DECADES) if 0 < value < math.inf and most else 0.0
        for place, value in listed
    }


_FIRST = ("conv", "linear", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in")
_PARTS = ("to_q", "to_k", "to_v", "to_out", "net.proj", "net")
_LAST = ("proj_out", "norm", _OTHERS)


def _layer_place(layer: str) -> tuple[int, str, int, str]:
    """Layers in the order of a block, those that are not known before the last ones."""
    first, _, rest = layer.partition(".")
    place = _FIRST.index(layer) - len(_FIRST) if layer in _FIRST else _LAST.index(layer) + 1 if layer in _LAST else 0
    return place, first, _PARTS.index(rest) if rest in _PARTS else len(_PARTS), rest
