"""An inspection for readers: one screen of text, at most 40 lines of 80 columns, or one self-contained page.

Both say the same facts, as pairs of a label and a text.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Literal, TypeVar, cast

from markupsafe import Markup

from lbm_lora.errors import Spelling, listing, plural, spelled
from lbm_lora.files import write_text
from lbm_lora.report.columns import BARS, bars, breakable
from lbm_lora.report.inspection.facts import ITERATIONS, norm_of
from lbm_lora.report.inspection.values import (
    AdapterFacts,
    BlockDifference,
    BlockFacts,
    CheckpointFacts,
    Coverage,
    DeltaFacts,
    Difference,
    FileFacts,
    Fit,
    Inspection,
    Origin,
    Reader,
    TensorDifference,
    TensorFacts,
    Truncation,
)
from lbm_lora.report.page import environment
from lbm_lora.report.table import Column, facts, table, text_table, words
from lbm_lora.report.wording import megabytes, percent, printable, share, shortened
from lbm_lora.text import TextError, parse_json

PAGE = "inspect.html"

Facts = list[tuple[str, str]]
Block = TypeVar("Block", BlockFacts, BlockDifference)

_WIDTH, _HEIGHT = 80, 40
_LARGEST, _LARGEST_ON_PAGE = 10, 20  # differences
_FORMATS = {
    "native": "lbm-lora's own format",
    "comfyui": "ComfyUI's format",
    "kohya": "kohya's format, with SDXL's single-file names",
    "kohya-diffusers": "kohya's format, with diffusers' names",
    "diffusers": "diffusers' format",
    "peft": "PEFT's format",
    "lycoris": "LyCORIS' format",
}


def screen(inspection: Inspection, spelling: Spelling = str) -> str:
    """The text of one file, or of how two differ.

    Args:
        spelling: of options in the reason why a file is not read.
    """
    file, other, difference = inspection.file, inspection.other, inspection.difference
    lines = _title(file)
    if other is None:
        lines += _listed([*file_facts_of(file, spelling), *(fit_lines(inspection.fit) if inspection.fit else [])])
        found = file.adapter or file.checkpoint
        if found is not None and found.blocks:
            room = _HEIGHT - len(lines) - 1
            columns = _block_columns(found.blocks, has_ranks=file.adapter is not None)
            lines += ["", *_block_table(columns, found.blocks, room, lambda block: block.norm)]
        return "\n".join([*lines, *_header(file, _HEIGHT - len(lines))])
    lines += _title(other)
    if inspection.fit is not None:
        lines += _listed(fit_lines(inspection.fit))
    elif difference is None:
        lines += _listed([("result", "files of these two kinds cannot be compared")])
    else:
        lines += _listed(difference_lines(difference))
        if not difference.is_same:
            room = _HEIGHT - len(lines) - _LARGEST - 3
            lines += ["", *_block_table(_BLOCK_DIFFERENCES, difference.blocks, room, lambda block: block.relative)]
            changed = sorted((r for r in difference.rows if r.match != "same"), key=lambda row: -_ordered(row.norm))
            lines += ["", *text_table(_DIFFERENCES, changed[:_LARGEST], width=_WIDTH)]
    return "\n".join(lines)


def write_page(inspection: Inspection, folder: Path) -> Path:
    """Write `inspect.html` to a folder, which is made if it is missing, and return its path."""
    path = folder / PAGE
    write_text(path, render_page(inspection))
    return path


def render_page(inspection: Inspection) -> str:
    """The page as text: the facts of each file, how two differ, and the blocks as heat maps."""
    difference, fit = inspection.difference, inspection.fit
    changed = difference.rows if difference and not difference.is_same else ()
    return (
        environment()
        .get_template("inspect.html")
        .render(
            sections=[_section(file) for file in (inspection.file, inspection.other) if file is not None],
            relation=difference_lines(difference) if difference else fit_lines(fit) if fit else [],
            difference=difference,
            difference_maps=[difference_map(changed)] if changed else [],
            largest=sorted(changed, key=lambda row: -row.norm)[:_LARGEST_ON_PAGE],
            difference_columns=_DIFFERENCES,
            truncation_columns=_TRUNCATIONS,
            reader_columns=_READERS,
        )
    )


def _section(file: FileFacts) -> dict[str, object]:
    adapter, checkpoint = file.adapter, file.checkpoint
    maps: list[HeatMap] = []
    if adapter is not None and adapter.deltas:
        maps = [norm_map(adapter.deltas, "change"), *([spectrum_map(adapter.deltas)] if adapter.modules else [])]
    elif checkpoint is not None:
        maps = [norm_map(checkpoint.tensors, "weights")]
    found = adapter or checkpoint
    return {
        "name": file.path.name or str(file.path),
        "line": file_line(file),
        "facts": file_facts_of(file),
        "header": header_lines(file.header),
        "blocks": found.blocks if found else (),
        "block_columns": _block_columns(found.blocks if found else (), has_ranks=adapter is not None),
        "maps": maps,
        "readers": adapter.readers if adapter else (),
        "truncations": adapter.truncations if adapter else (),
    }


def file_line(file: FileFacts) -> str:
    """`a LoRA in lbm-lora's own format, 2.85 MB`."""
    form = f" in {_FORMATS.get(file.adapter.file_format, file.adapter.file_format)}" if file.adapter else ""
    shards = f" in {len(file.files)} files" if len(file.files) > 1 else ""
    return f"{file.kind}{form}, {megabytes(file.nbytes)}{shards}"


def file_facts_of(file: FileFacts, spelling: Spelling = str) -> Facts:
    """Everything about a file but its blocks and its header."""
    if file.adapter is not None:
        lines = _adapter_lines(file, file.adapter)
    elif file.checkpoint is not None:
        lines = _checkpoint_lines(file, file.checkpoint)
    else:
        lines = [
            ("tensors", f"{file.tensors:,}: {_counts(file.dtypes)}" if file.tensors else ""),
            ("first keys", _names(file.first_keys)),
            ("not read", spelled(file.refusal.args, spelling) if file.refusal is not None else ""),
        ]
    return [(label, text) for label, text in lines if text]


def _adapter_lines(file: FileFacts, adapter: AdapterFacts) -> Facts:
    ranks, for_90, for_99 = (
        sum(getattr(block, name) for block in adapter.blocks) for name in ("ranks", "ranks_90", "ranks_99")
    )
    smaller = [one for one in adapter.truncations if one.ranks < ranks]
    return [
        ("written by", adapter.written_by),
        ("base", _origin(adapter.base)),
        ("tuned", _origin(adapter.tuned) if adapter.tuned.fingerprint else ""),
        ("holds", f"{plural(adapter.modules, 'lora module')}, {plural(adapter.dense, 'dense delta')}"),
        ("kinds", _counts(adapter.kinds)),
        ("ranks", _ranks(adapter)),
        ("alpha", _scalings(adapter)),
        ("bytes", _nbytes(file, adapter)),
        ("norm", f"{adapter.norm:.4g} over all deltas" if math.isfinite(adapter.norm) else ""),
        ("not finite", _some(adapter.broken, "delta")),
        ("not touched", _untouched(adapter.coverage)),
        ("not LBM's", _some(adapter.coverage.unexpected, "name") if adapter.coverage else ""),
        ("energy", f"90 % of each delta's in {for_90:,} of {ranks:,} ranks, 99 % in {for_99:,}" if ranks else ""),
        ("cut to", ", ".join(f"{megabytes(one.nbytes)}: error {100 * one.relative_error:g} %" for one in smaller)),
        ("read by", ", ".join(_noted(reader) for reader in adapter.readers if reader.reads == "all")),
        *(("in part by", _noted(reader)) for reader in adapter.readers if reader.reads == "part"),
        *(
            (f"for {reader.name}", f"lbm-lora convert --lora_path IN {reader.options} --save_to OUT")
            for reader in adapter.readers
            if reader.convert_to
        ),
    ]


def _checkpoint_lines(file: FileFacts, checkpoint: CheckpointFacts) -> Facts:
    known = f", {checkpoint.known_as}" if checkpoint.known_as else ", not known"
    components = checkpoint.components[:6] if len(checkpoint.components) > 1 else ()
    return [
        ("looks like", f"{checkpoint.role}: {checkpoint.role_reason}" if checkpoint.role else ""),
        ("fingerprint", f"{checkpoint.fingerprint[:12]}{known}"),
        ("tensors", f"{file.tensors:,}: {_counts(file.dtypes)}"),
        *(
            (
                shortened(printable(one.name), 12),
                f"{plural(one.tensors, 'tensor')}, {megabytes(one.nbytes)}, {_counts(one.dtypes)}",
            )
            for one in components
            if one.name != ITERATIONS
        ),
        ("config", checkpoint.config),
        ("iterations", "" if checkpoint.iterations is None else f"{checkpoint.iterations:,}"),
        ("not finite", _some(checkpoint.broken, "tensor")),
        ("missing", _untouched(checkpoint.coverage)),
        ("not LBM's", _some(checkpoint.coverage.unexpected, "name") if checkpoint.coverage else ""),
    ]


def difference_lines(difference: Difference) -> Facts:
    """How two files differ, in total."""
    said = {"same": "with the same bits", "different": "different", "other shape": "of another shape"}
    said |= {"only first": "only in the first", "only second": "only in the second"}
    counted = ", ".join(f"{count:,} {said[match]}" for match, count in difference.counts.items())
    return [
        ("result", "the same bits everywhere" if difference.is_same else counted),
        ("difference", f"{percent(difference.relative)} of the first file's norm"),
        ("cosine", f"{difference.cosine:.6f}"),
    ]


def fit_lines(fit: Fit) -> Facts:
    """Whether a LoRA fits a checkpoint."""
    bases = {
        "base": "this is the checkpoint that the LoRA was made from",
        "tuned": "this is the tuned checkpoint that the LoRA was extracted from, not its base",
        "other": f"the LoRA was made from another base; different here: {_some(fit.differing, 'tensor')}",
        "unknown": "the LoRA does not say which base it was made from",
    }
    lines = [
        ("fits", "yes" if fit.fits else "no"),
        ("names", f"{fit.matched:,} match by name and shape"),
        ("unmatched", _some(fit.unmatched, "name")),
        ("shapes", _some(fit.mismatched, "parameter") + " of another shape" if fit.mismatched else ""),
        ("base", bases[fit.base]),
    ]
    return [(label, text) for label, text in lines if text]


def header_lines(header: Mapping[str, str], *, left_out: Collection[str] = ()) -> Facts:
    """The header's entries, those that matter most first; JSON objects as `key value` pairs."""
    first = ("lbm_lora_errors", "lbm_lora_settings", "lbm_lora_refinement")
    keys = dict.fromkeys(key for key in (*first, *header) if key in header and key not in left_out)
    return [(printable(key), printable(_unpacked(header[key]))) for key in keys]


def _unpacked(value: str) -> str:
    try:
        found = parse_json(value) if value.startswith("{") else None
    except TextError:
        return value
    if not isinstance(found, dict):
        return value
    entries = cast(dict[str, object], found)
    return ", ".join(f"{key} {_spelt(item)}" for key, item in entries.items() if item not in (None, [], "", {}))


def _spelt(item: object) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, list):
        return " ".join(map(str, cast(list[object], item)))
    return f"{item:.4g}" if isinstance(item, float) else str(item)


def _origin(origin: Origin) -> str:
    if not origin.fingerprint:
        return "not recorded"
    return f"{origin.fingerprint[:12]}, {origin.known_as or 'not known'}"


def _ranks(adapter: AdapterFacts) -> str:
    if len(adapter.ranks) < 2:
        return f"{adapter.rank_span} everywhere" if adapter.ranks else ""
    most = sorted(adapter.ranks.items(), key=lambda item: -item[1])[:5]
    listed = ", ".join(f"{rank} in {count:,}" for rank, count in sorted(most))
    median = median_low(Counter(adapter.ranks).elements())
    return f"{adapter.rank_span}, median {median}: {listed}{_others(len(adapter.ranks) - len(most))}"


def _others(count: int) -> str:
    return f", {plural(count, 'other')}" if count else ""


def _scalings(adapter: AdapterFacts) -> str:
    if not adapter.scalings:
        return ""
    if set(adapter.scalings) == {1.0}:
        return "equal to the rank everywhere: scaling 1"
    most = list(adapter.scalings.items())[:4]
    listed = ", ".join(f"{scaling:g} in {count:,}" for scaling, count in most)
    return f"scaling (alpha / rank) {listed}{_others(len(adapter.scalings) - len(most))}"


def _nbytes(file: FileFacts, adapter: AdapterFacts) -> str:
    other = file.nbytes - file.header_nbytes - adapter.factor_nbytes - adapter.dense_nbytes
    parts = [
        (adapter.factor_nbytes, "factors"),
        (adapter.dense_nbytes, "dense"),
        (max(other, 0), "alphas and others"),
        (file.header_nbytes, "header"),
    ]
    return f"{adapter.dtype}: " + ", ".join(f"{megabytes(nbytes)} {what}" for nbytes, what in parts if nbytes)


def _untouched(coverage: Coverage | None) -> str:
    """`12 of LBM's 1,676 tensors (8 bias, 4 norm): a, b, c`."""
    if coverage is None:
        return ""
    of = f"of LBM's {coverage.tensors:,} tensors"
    if not coverage.missing:
        return f"none {of}"
    return f"{len(coverage.missing):,} {of} ({_counts(coverage.missing_kinds)}): {_names(coverage.missing, limit=2)}"


def _some(names: Sequence[str], noun: str) -> str:
    return f"{plural(len(names), noun)}: {_names(names)}" if names else ""


def _names(names: Sequence[str], *, limit: int = 3) -> str:
    """The first names, each of them short enough for a line."""
    return listing((shortened(printable(name), 56) for name in names), limit=limit)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _noted(reader: Reader) -> str:
    return f"{reader.name} ({reader.note})" if reader.note else reader.name


def _title(file: FileFacts) -> list[str]:
    name = shortened(printable(file.path.name or str(file.path)), _WIDTH - 2)
    line = f"{name}: {file_line(file)}"
    return [line] if len(line) <= _WIDTH else [f"{name}:", f"  {file_line(file)}"]


def _listed(lines: Facts) -> list[str]:
    return facts(lines, label=13, width=_WIDTH, gap=2)  # `for diffusers`


def _short(name: str, width: int = 20) -> str:
    return shortened(printable(name), width)


def _block_columns(blocks: Sequence[BlockFacts], *, has_ranks: bool) -> Sequence[Column[BlockFacts]]:
    """Each block with its bytes and norm; for a LoRA, with its ranks."""
    longest = max((block.share for block in blocks), default=0.0) or 1.0
    columns = [
        Column[BlockFacts](lambda b: _short(b.block), "block", css="", markup=lambda b: breakable(b.block)),
        Column[BlockFacts](lambda b: f"{b.tensors:,}", "tensors"),
        Column[BlockFacts](lambda b: f"{b.nbytes / 1e9:,.2f} GB" if b.nbytes >= 1e9 else megabytes(b.nbytes), "bytes"),
        Column[BlockFacts](lambda b: f"{b.norm:.3g}", "norm"),
        Column[BlockFacts](lambda b: "", None, BARS, "bars", lambda b: bars(change=b.share / longest)),
        Column[BlockFacts](lambda b: share(b.share), "of norm²", "of the squared norm"),
    ]
    if has_ranks:
        columns += [
            Column[BlockFacts](lambda b: f"{b.ranks:,}" if b.ranks else "-", "ranks"),
            Column[BlockFacts](lambda b: f"{b.ranks_90:,}" if b.ranks_90 else "-", "90 %", "ranks for 90 %"),
            Column[BlockFacts](lambda b: f"{b.ranks_99:,}" if b.ranks_99 else "-", "99 %", "for 99 %"),
        ]
    return columns


_BLOCK_DIFFERENCES = (
    Column[BlockDifference](lambda b: _short(b.block), "block", css=""),
    Column[BlockDifference](lambda b: f"{b.tensors:,}", "tensors"),
    Column[BlockDifference](lambda b: f"{b.same:,}", "same bits"),
    Column[BlockDifference](lambda b: percent(b.relative), "difference"),
    Column[BlockDifference](lambda b: f"{b.cosine:.4f}", "cosine"),
)
_DIFFERENCES = (
    Column[TensorDifference](
        lambda r: _short(r.name, 52), "largest differences", "name", "", lambda r: breakable(r.name)
    ),
    Column[TensorDifference](lambda r: r.match, None, "match", ""),
    Column[TensorDifference](lambda r: f"{r.norm:.3g}", "norm"),
    Column[TensorDifference](lambda r: percent(r.relative) if r.match == "different" else r.match, "relative"),
    Column[TensorDifference](lambda r: f"{r.cosine:.4f}", None, "cosine"),
)
_TRUNCATIONS = (
    Column[Truncation](lambda t: percent(t.relative_error), "relative error"),
    Column[Truncation](lambda t: f"{t.ranks:,}", "ranks"),
    Column[Truncation](lambda t: megabytes(t.nbytes), "size"),
)
_READS, _CONVERT = Markup('<span class="reads-{0}">{0}</span>'), Markup("<code>lbm-lora convert {}</code>")
_READERS = (
    Column[Reader](lambda r: r.name, "program", css=""),
    Column[Reader](lambda r: r.reads, "reads", css="", markup=lambda r: _READS.format(r.reads)),
    Column[Reader](lambda r: r.note, "note", css=""),
    Column[Reader](
        lambda r: r.options,
        "convert to",
        css="",
        markup=lambda r: _CONVERT.format(r.options) if r.convert_to else Markup(),
    ),
)


def _block_table(
    columns: Sequence[Column[Block]], blocks: Sequence[Block], room: int, weight: Callable[[Block], float]
) -> list[str]:
    """All blocks, or the heaviest of them in their order, in a table of `room` lines with its head."""
    fitting = max(6, room - 1 if len(blocks) <= room - 1 else room - 2)
    heaviest = sorted(range(len(blocks)), key=lambda place: -_ordered(weight(blocks[place])))[:fitting]
    rows = [blocks[place] for place in sorted(heaviest)]
    return [*text_table(columns, rows, width=_WIDTH), *_more(len(blocks) - len(rows), "block")]


def _header(file: FileFacts, room: int) -> list[str]:
    """The header's entries, each on one line, as many as there is room for, without those that the facts repeat."""
    said = [f"lbm_lora_{key}" for key in ("format", "base_fingerprint", "tuned_fingerprint", "counts")]
    entries = header_lines(file.header, left_out=said)
    if not entries or room < 4:
        return []
    fitting = entries[: room - 2 if len(entries) <= room - 2 else room - 3]
    cells = [(shortened(key, 26), value if len(value) <= 48 else f"{value[:45]}...") for key, value in fitting]
    return ["", "header", *table([words(), words()], cells, width=_WIDTH), *_more(len(entries) - len(cells), "line")]


def _ordered(value: float) -> float:
    """A value to sort by: what is not finite comes first."""
    return value if math.isfinite(value) else math.inf


def _more(count: int, what: str) -> list[str]:
    return [f"  and {plural(count, what)} more (--json lists all)"] if count > 0 else []


Member = TypeVar("Member", bound=DeltaFacts | TensorFacts | TensorDifference)

_BLOCKS, _LAYERS = 60, 40  # of a heat map, at most: a hostile file can name thousands
_SCALE = "Shades are logarithmic: none is left at a hundredth of the largest value."
_FIRST = ("conv", "linear", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in")
_PARTS = ("to_q", "to_k", "to_v", "to_out", "net.proj", "net")
_LAST = ("proj_out", "norm", "others")


@dataclass(frozen=True)
class HeatMap:
    """A table of coloured cells: block -> layer -> HTML. `about`: how to read it."""

    title: str
    about: str
    cells: Mapping[str, Mapping[str, Markup]]

    @property
    def columns(self) -> list[Column[str]]:
        """A block's name, then the layers in their order."""
        layers = sorted({layer for row in self.cells.values() for layer in row}, key=_layer_place)
        return [Column(str, Markup('<span class="hidden">block</span>'), css=""), *map(self._column, layers)]

    def _column(self, layer: str) -> Column[str]:
        head = Markup("<span>{}</span>").format(printable(layer))
        return Column(str, head, css="", markup=lambda block: self.cells[block].get(layer, Markup()))


def norm_map(rows: Sequence[DeltaFacts] | Sequence[TensorFacts], what: Literal["change", "weights"]) -> HeatMap:
    """Where the change or the weight is: the joint norm of each block and layer."""

    def cell(members: Sequence[DeltaFacts | TensorFacts]) -> tuple[float, str, str]:
        norm, nbytes = norm_of(row.norm for row in members), sum(row.nbytes for row in members)
        return norm, f"{norm:.3g}", f"{plural(len(members), 'tensor')}, {megabytes(nbytes)}, norm {norm:.5g}"

    about = f"The Frobenius norm of all tensors of a block and layer together. {_SCALE}"
    return _map(f"Norm of the {what}", about, list(rows), cell)


def spectrum_map(deltas: Sequence[DeltaFacts]) -> HeatMap:
    """How far ranks are used: the share of them that carries 90 % of the energy."""

    def cell(members: Sequence[DeltaFacts]) -> tuple[float, str, str]:
        ranks, used = sum(one.rank or 0 for one in members), sum(one.rank_90 or 0 for one in members)
        part = used / ranks if ranks else math.nan
        title = f"{plural(len(members), 'module')}: 90 % of the energy in {used:,} of {ranks:,} ranks"
        return part, f"{100 * part:.0f}", title

    about = (
        "How many percent of the stored ranks carry 90 % of each delta's energy. Where it is low, the file can be made "
        "smaller at little cost; where it is near 90, the ranks are used evenly."
    )
    return _map("Ranks in use", about, [one for one in deltas if one.rank is not None], cell, is_share=True)


def difference_map(rows: Sequence[TensorDifference]) -> HeatMap:
    """Where two files differ: the norm of the difference of each block and layer."""

    def cell(members: Sequence[TensorDifference]) -> tuple[float, str, str]:
        norm, same = norm_of(row.norm for row in members), sum(row.match == "same" for row in members)
        return norm, f"{norm:.3g}", f"{plural(len(members), 'tensor')}, {same:,} with the same bits; norm {norm:.5g}"

    changed = [row for row in rows if row.block in {row.block for row in rows if row.match != "same"}]
    about = f"The Frobenius norm of the difference, of all tensors of a block and layer together. {_SCALE}"
    if len(changed) < len(rows):
        about += " Blocks with the same bits in both are left out."
    return _map("Norm of the difference", about, changed, cell)


def _map(
    title: str,
    about: str,
    rows: Sequence[Member],
    cell: Callable[[Sequence[Member]], tuple[float, str, str]],
    *,
    is_share: bool = False,
) -> HeatMap:
    """Group the rows by block and layer; shades are the shares themselves, or logarithmic over two decades."""
    blocks = dict(Counter(row.block for row in rows).most_common(_BLOCKS))
    layers = dict(Counter(row.layer for row in rows).most_common(_LAYERS))
    grouped: dict[str, dict[str, list[Member]]] = {}
    for row in rows:
        block, layer = row.block if row.block in blocks else "others", row.layer if row.layer in layers else "others"
        grouped.setdefault(block, {}).setdefault(layer, []).append(row)
    values = {block: {layer: cell(members) for layer, members in row.items()} for block, row in grouped.items()}
    most = max((value for row in values.values() for value, _, _ in row.values() if 0 < value < math.inf), default=1.0)

    def markup(value: float, text: str, about: str) -> Markup:
        shade = value if is_share else 1 + math.log10(value / most) / 2 if 0 < value < math.inf else 0.0
        shade = shade if 0 <= shade <= 1 else 0.0
        css = "cell hot" if shade > 0.65 else "cell"
        return Markup('<span class="{}" style="--shade: {:.3f}" title="{}">{}</span>').format(css, shade, about, text)

    cells = {block: {layer: markup(*found) for layer, found in row.items()} for block, row in values.items()}
    return HeatMap(title, about, cells)


def _layer_place(layer: str) -> tuple[int, str, int, str]:
    """Layers in the order of a block, those that are not known before the last ones."""
    first, _, rest = layer.partition(".")
    place = _FIRST.index(layer) - len(_FIRST) if layer in _FIRST else _LAST.index(layer) + 1 if layer in _LAST else 0
    return place, first, _PARTS.index(rest) if rest in _PARTS else len(_PARTS), rest
