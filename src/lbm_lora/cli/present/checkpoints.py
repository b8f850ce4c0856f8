"""Results of the commands that make, change or list checkpoints: base, fuse, layers."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbm_lora.cli.present.lines import file_lines, paragraphs
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.report.table import facts, numbers, paragraph, table, words
from lbm_lora.report.wording import dimensions, megabytes, percent, plural, share

if TYPE_CHECKING:
    from lbm_lora.model.base import BaseItem
    from lbm_lora.model.baseline import BaselineReport
    from lbm_lora.workflows.base import BaseResult
    from lbm_lora.workflows.fuse import FuseResult
    from lbm_lora.workflows.layers import LayersResult

_ACTIONS = ("copied", "cropped", "padded", "added", "dropped")
_MOST_REASONS = 4
_UNFOLDED = 10_000  # columns: names of layers are there to be copied


def base(result: "BaseResult", verbose: bool) -> str:
    """Return the ledger of the base, and its distance from the tuned checkpoint if one was given."""
    items = result.base.ledger if verbose else ()
    rows = [f"  {item.action:<8} {item.key} {item.from_shape} -> {item.to_shape}: {item.reason}" for item in items]
    return paragraphs(
        "\n".join(rows),
        "\n".join(_ledger(result.base.ledger)),
        "" if result.baseline is None else "\n".join(_baseline(result.baseline)),
        "\n".join(result.base.notes),
        file_lines(result.base.safetensors, result.base.ckpt, result.ledger_file),
    )


def fuse(result: "FuseResult", _: bool) -> str:
    """Return the number of changed tensors, and the file."""
    changed = f"{result.changed:,} of {plural(result.tensors, 'tensor')} changed"
    return f"Fused: {changed}, the others copied byte for byte.\n{file_lines(result.output)}"


def layers(result: "LayersResult", _: bool) -> str:
    """Return each layer, and the size of a LoRA of all of them."""
    rows = [(layer.name, layer.kind, dimensions(layer.shape), f"{layer.rank:,}") for layer in result.layers]
    columns = [words("layer"), words("kind"), numbers("shape"), numbers("rank")]
    total = (
        f"{len(result.layers):,} of {plural(result.total, 'layer')}, {result.parameters:,} parameters; a LoRA of "
        f"them: {result.lora_parameters:,} parameters, {megabytes(result.file_bytes)} in bf16"
    )
    memory = (
        f"Training it takes about {result.training_bytes / 1e9:,.2f} GB (the model in bf16 "
        f"{result.model_bytes / 1e9:,.2f} GB, the rest for the trainable parameters and AdamW), plus activations, "
        "which grow with image size and batch_size."
    )
    return paragraphs("\n".join(table(columns, rows, width=_UNFOLDED)), f"{total}\n{memory}")


def _ledger(ledger: "Sequence[BaseItem]") -> list[str]:
    rows = [(action, [item for item in ledger if item.action == action]) for action in _ACTIONS]
    kept = [item for item in ledger if item.action != "dropped"]
    columns = [words("action"), *map(numbers, ("denoiser", "other", "sum")), words()]
    cells = [(action, *_counts(items), _reasons(items)) for action, items in rows]
    return ["Ledger of the base", *table(columns, [*cells, ("in the base", *_counts(kept), "")])]


def _counts(items: "Sequence[BaseItem]") -> tuple[str, str, str]:
    denoiser = sum(item.key.startswith(DENOISER_PREFIX) for item in items)
    return f"{denoiser:,}", f"{len(items) - denoiser:,}", f"{len(items):,}"


def _reasons(items: "Sequence[BaseItem]") -> str:
    """Return the most frequent reasons, with their counts if there are several."""
    reasons = Counter(item.reason for item in items).most_common()
    spelt = [f"{count:,} {reason}" if len(reasons) > 1 else reason for reason, count in reasons[:_MOST_REASONS]]
    more = [f"and {len(reasons) - _MOST_REASONS} more reasons"] if len(reasons) > _MOST_REASONS else []
    return ", ".join([*spelt, *more])


def _baseline(baseline: "BaselineReport") -> list[str]:
    same = f"{share(baseline.unchanged)} of the elements; {plural(baseline.unchanged_tensors, 'entire tensor')}"
    lines = [
        ("Matched denoiser keys", baseline.matched),
        ("Average difference", f"{baseline.average_difference:.8f}  {baseline.band} (documented band)"),
        ("Maximum difference", f"{baseline.maximum_difference:.8f}"),
        ("unchanged", same),
        ("noise floor", f"{percent(baseline.noise_floor)} of the change is rounding of the tuned file"),
    ]
    meaning = paragraph(baseline.band_meaning) if baseline.band_meaning else []
    return ["Base against the tuned model", *paragraph(baseline.verdict), *facts(lines), *meaning]
