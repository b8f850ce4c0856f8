"""The facts of an inspection as pairs of a label and a text: what the screen and the page both say."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import cast

from lbm_lora.errors import Spelling, listing, plural, spelled
from lbm_lora.plain_text import TextError, parse_json
from lbm_lora.report.inspection.adapter_values import AdapterFacts, Coverage, Origin
from lbm_lora.report.inspection.checkpoints import ITERATIONS
from lbm_lora.report.inspection.values import CheckpointFacts, FileFacts
from lbm_lora.report.wording import megabytes, printable, shortened

Facts = list[tuple[str, str]]

_FORMATS = {
    "native": "lbm-lora's own format",
    "comfyui": "ComfyUI's format",
    "kohya": "kohya's format, with SDXL's single-file names",
    "kohya-diffusers": "kohya's format, with diffusers' names",
    "diffusers": "diffusers' format",
    "peft": "PEFT's format",
    "lycoris": "LyCORIS' format",
}
_FINGERPRINT = 12  # digits shown
_COMPONENTS = 6
_LABEL = 12  # letters of a label
_NAME = 56  # letters of a name
_FIRST = ("lbm_lora_errors", "lbm_lora_settings", "lbm_lora_refinement")


def file_line(facts: FileFacts) -> str:
    """`a LoRA in lbm-lora's own format, 2.85 MB`."""
    form = f" in {_FORMATS.get(facts.adapter.file_format, facts.adapter.file_format)}" if facts.adapter else ""
    shards = f" in {len(facts.files)} files" if len(facts.files) > 1 else ""
    return f"{facts.kind}{form}, {megabytes(facts.nbytes)}{shards}"


def file_facts_of(facts: FileFacts, spelling: Spelling = str) -> Facts:
    """Everything about a file but its blocks and its header."""
    if facts.adapter is not None:
        return adapter_lines(facts, facts.adapter)
    if facts.checkpoint is not None:
        return checkpoint_lines(facts, facts.checkpoint)
    lines = [
        ("tensors", f"{facts.tensors:,}: {_counts(facts.dtypes)}" if facts.tensors else ""),
        ("first keys", _names(facts.first_keys)),
    ]
    if facts.refusal is not None:
        lines.append(("not read", spelled(facts.refusal.args, spelling)))
    return [(label, text) for label, text in lines if text]


def adapter_lines(facts: FileFacts, adapter: AdapterFacts) -> Facts:
    """The facts of a LoRA."""
    lines = [
        ("written by", adapter.written_by),
        ("base", _origin(adapter.base)),
        ("tuned", _origin(adapter.tuned) if adapter.tuned.fingerprint else ""),
        ("holds", f"{plural(adapter.modules, 'lora module')}, {plural(adapter.dense, 'dense delta')}"),
        ("kinds", _counts(adapter.kinds)),
        ("ranks", _ranks(adapter)),
        ("alpha", _scalings(adapter)),
        ("bytes", _nbytes(facts, adapter)),
        ("norm", f"{adapter.norm:.4g} over all deltas" if math.isfinite(adapter.norm) else ""),
        ("not finite", some(adapter.broken, "delta")),
        ("not touched", _untouched(adapter.coverage)),
        ("not LBM's", some(adapter.coverage.unexpected, "name") if adapter.coverage else ""),
        ("energy", _energy(adapter)),
        ("cut to", truncation_line(adapter)),
        *reader_lines(adapter),
    ]
    return [(label, text) for label, text in lines if text]


def reader_lines(adapter: AdapterFacts) -> Facts:
    """Who reads the file as it is, and the commands that make it readable for the others."""
    groups = {what: [reader for reader in adapter.readers if reader.reads == what] for what in ("all", "part")}
    lines = [("read by", ", ".join(_noted(reader.name, reader.note) for reader in groups["all"]))]
    lines += [("in part by", _noted(reader.name, reader.note)) for reader in groups["part"]]
    commands = [
        (f"for {reader.name}", f"lbm-lora convert --lora_path IN {reader.options} --save_to OUT")
        for reader in adapter.readers
        if reader.convert_to
    ]
    return lines + commands


def truncation_line(adapter: AdapterFacts) -> str:
    """How small it gets at a few errors."""
    ranks = sum(block.ranks for block in adapter.blocks)
    smaller = [one for one in adapter.truncations if one.ranks < ranks]
    return ", ".join(f"{megabytes(one.nbytes)}: error {100 * one.relative_error:g} %" for one in smaller)


def checkpoint_lines(facts: FileFacts, checkpoint: CheckpointFacts) -> Facts:
    """The facts of a checkpoint."""
    known = f", {checkpoint.known_as}" if checkpoint.known_as else ", not known"
    lines = [
        ("looks like", f"{checkpoint.role}: {checkpoint.role_reason}" if checkpoint.role else ""),
        ("fingerprint", f"{checkpoint.fingerprint[:_FINGERPRINT]}{known}"),
        ("tensors", f"{facts.tensors:,}: {_counts(facts.dtypes)}"),
        *_components(checkpoint),
        ("config", checkpoint.config),
        ("iterations", "" if checkpoint.iterations is None else f"{checkpoint.iterations:,}"),
        ("not finite", some(checkpoint.broken, "tensor")),
        ("missing", _untouched(checkpoint.coverage)),
        ("not LBM's", some(checkpoint.coverage.unexpected, "name") if checkpoint.coverage else ""),
    ]
    return [(label, text) for label, text in lines if text]


def _components(checkpoint: CheckpointFacts) -> Facts:
    """A line for each of the first components, where there are several."""
    if len(checkpoint.components) < 2:
        return []
    return [
        (
            shortened(printable(one.name), _LABEL),
            f"{plural(one.tensors, 'tensor')}, {megabytes(one.nbytes)}, {_counts(one.dtypes)}",
        )
        for one in checkpoint.components[:_COMPONENTS]
        if one.name != ITERATIONS
    ]


def header_lines(header: Mapping[str, str], *, left_out: Collection[str] = ()) -> Facts:
    """The header's entries, those that matter most first; JSON objects as `key value` pairs."""
    keys = [key for key in (*_FIRST, *header) if key in header and key not in left_out]
    return [(printable(key), printable(_unpacked(header[key]))) for key in dict.fromkeys(keys)]


def _unpacked(value: str) -> str:
    if not value.startswith("{"):
        return value
    try:
        found = parse_json(value)
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
    return f"{origin.fingerprint[:_FINGERPRINT]}, {origin.known_as or 'not known'}"


def _ranks(adapter: AdapterFacts) -> str:
    if not adapter.ranks:
        return ""
    if len(adapter.ranks) == 1:
        return f"{adapter.rank_span} everywhere"
    most = sorted(adapter.ranks.items(), key=lambda item: -item[1])[:5]
    listed = ", ".join(f"{rank} in {count:,}" for rank, count in sorted(most))
    more = len(adapter.ranks) - len(most)
    return f"{adapter.rank_span}, median {_median(adapter.ranks)}: {listed}{_others(more)}"


def _others(count: int) -> str:
    """`, 1 other`, `, 2 others`; empty for none."""
    return f", {plural(count, 'other')}" if count else ""


def _median(counts: Mapping[int, int]) -> int:
    """The lower median of numbers with their counts."""
    half, seen = (sum(counts.values()) + 1) // 2, 0
    for number, count in sorted(counts.items()):
        seen += count
        if seen >= half:
            return number
    return 0


def _scalings(adapter: AdapterFacts) -> str:
    if not adapter.scalings:
        return ""
    if set(adapter.scalings) == {1.0}:
        return "equal to the rank everywhere: scaling 1"
    most = list(adapter.scalings.items())[:4]
    more = len(adapter.scalings) - len(most)
    listed = ", ".join(f"{scaling:g} in {count:,}" for scaling, count in most)
    return f"scaling (alpha / rank) {listed}{_others(more)}"


def _energy(adapter: AdapterFacts) -> str:
    ranks, for_90, for_99 = (
        sum(getattr(block, name) for block in adapter.blocks) for name in ("ranks", "ranks_90", "ranks_99")
    )
    return f"90 % of each delta's in {for_90:,} of {ranks:,} ranks, 99 % in {for_99:,}" if ranks else ""


def _nbytes(facts: FileFacts, adapter: AdapterFacts) -> str:
    other = facts.nbytes - facts.header_nbytes - adapter.factor_nbytes - adapter.dense_nbytes
    parts = [
        (adapter.factor_nbytes, "factors"),
        (adapter.dense_nbytes, "dense"),
        (max(other, 0), "alphas and others"),
        (facts.header_nbytes, "header"),
    ]
    return f"{adapter.dtype}: " + ", ".join(f"{megabytes(nbytes)} {what}" for nbytes, what in parts if nbytes)


def _untouched(coverage: Coverage | None) -> str:
    """`12 of LBM's 1,676 tensors (8 bias, 4 norm): a, b, c`."""
    if coverage is None:
        return ""
    if not coverage.missing:
        return f"none of LBM's {coverage.tensors:,} tensors"
    first = _names(coverage.missing, limit=2)
    return (
        f"{len(coverage.missing):,} of LBM's {coverage.tensors:,} tensors ({_counts(coverage.missing_kinds)}): {first}"
    )


def some(names: Sequence[str], noun: str) -> str:
    return f"{plural(len(names), noun)}: {_names(names)}" if names else ""


def _names(names: Sequence[str], *, limit: int = 3) -> str:
    """The first names, each of them short enough for a line."""
    return listing((shortened(printable(name), _NAME) for name in names), limit=limit)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _noted(name: str, note: str) -> str:
    return f"{name} ({note})" if note else name
