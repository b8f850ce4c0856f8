"""The text of each command's result on stdout.

A result says what it is by its command, so that no other command's libraries are imported to present it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lbm_lora.cli.present_learning import calibrate, data_check, data_pack, refine, train
from lbm_lora.cli.wording import file_of, layer_line, left_out, paragraphs, written
from lbm_lora.report import Report, base_text, full_text, short_text

if TYPE_CHECKING:
    from lbm_lora.workflows.base import BaseResult
    from lbm_lora.workflows.demo import DemoResult
    from lbm_lora.workflows.extract import ExtractResult
    from lbm_lora.workflows.fuse import FuseResult
    from lbm_lora.workflows.infer import InferResult
    from lbm_lora.workflows.infer_shards import InferShardsResult
    from lbm_lora.workflows.layers import LayersResult
    from lbm_lora.workflows.validate import ValidateResult


def present(command: str, result: Any, *, verbose: bool = False) -> str:
    """What a user reads of a command's result; with `verbose`, every layer too."""
    return _PRESENTERS[command](result, verbose)


def _base(result: "BaseResult", verbose: bool) -> str:
    items = result.base.ledger if verbose else ()
    rows = [f"  {item.action:<8} {item.key} {item.from_shape} -> {item.to_shape}: {item.reason}" for item in items]
    return paragraphs(
        "\n".join(rows),
        base_text(result.base.ledger, result.baseline),
        "\n".join(result.base.notes),
        written(result.base.safetensors, result.base.ckpt, result.ledger_file),
    )


def _extract(result: "ExtractResult", verbose: bool) -> str:
    rows = [layer_line(row) for row in result.report.rows] if verbose else []
    return paragraphs(
        "\n".join(rows),
        short_text(Report(weights=result.report)),
        "\n".join(result.notes),
        _predictions(result),
        _tried_pictures(result),
        written(result.adapter, result.sidecar),
        *(_extract(further, verbose) for further in result.further),
    )


def _predictions(result: "ExtractResult") -> str:
    """What was expected of the file, and what other sizes would give."""
    if result.predicted is None:
        return ""
    what = "error of the denoiser's output" if result.predicted.of == "output" else "error of the weights"
    first = f"Predicted relative {what}: {result.predicted.error:.3%}. Other sizes would give:"
    rows = [f"  {size.nbytes / 1e6:>10,.2f} MB  {size.error:>9.3%}" for size in result.sizes]
    return "\n".join([first, *rows]) if rows else first


def _tried_pictures(result: "ExtractResult") -> str:
    """What the pictures came to that the LoRA was run on."""
    found = result.images
    if found is None:
        return ""
    predicted = "" if found.predicted_psnr is None else f", predicted {found.predicted_psnr:.1f} dB"
    return (
        f"One-step pictures against the tuned model's, {found.count} of them: PSNR {found.mean_psnr:.1f} dB in the "
        f"mean, {found.worst_psnr:.1f} dB at worst ({found.worst_image}{predicted})."
    )


def _validate(result: "ValidateResult", verbose: bool) -> str:
    rows = [layer_line(row) for row in result.report.weights.rows] if verbose else []
    return paragraphs("\n".join(rows), full_text(result.report), written(*result.files, result.layer_names))


def _infer(result: "InferResult", _: bool) -> str:
    lines = [
        f"  {made.source.name} {made.width}x{made.height} -> {made.output} "
        f"(model {made.model_width}x{made.model_height}, {made.seconds:.1f} s)"
        + (f"\n    side by side: {made.comparison}" if made.comparison else "")
        + (f"\n    source: {made.source_copy}" if made.source_copy else "")
        for made in result.outputs
    ]
    return "\n".join([f"Translated {len(result.outputs)} on {result.device} in {result.dtype}:", *lines])


def _infer_shards(result: "InferShardsResult", verbose: bool) -> str:
    head = (
        f"Translated {result.images:,} images of {result.written:,} shards into {result.folder} on {result.device} "
        f"in {result.dtype}; {result.present:,} shards were there already."
    )
    if result.stopped_by:
        head = f"Stopped by {result.stopped_by}. {head} The same command goes on from there."
    count = f"{len(result.skipped):,} samples cannot be used." if result.skipped else ""
    return paragraphs(head, "\n".join([count, *left_out(result.skipped, verbose)]) if count else "")


def _fuse(result: "FuseResult", _: bool) -> str:
    changed = f"{result.changed:,} of {result.tensors:,} tensors changed"
    return f"Fused: {changed}, the others copied byte for byte.\n{written(result.output)}"


def _layers(result: "LayersResult", _: bool) -> str:
    width = max((len(layer.name) for layer in result.layers), default=0)
    lines = [
        f"{layer.name:<{width}}  {layer.kind:<8} {'x'.join(map(str, layer.shape)):>14}  rank {layer.rank}"
        for layer in result.layers
    ]
    total = (
        f"{len(result.layers):,} of {result.total:,} layers, {result.parameters:,} parameters; a LoRA of them: "
        f"{result.lora_parameters:,} parameters, {result.file_bytes / 1e6:,.2f} MB in bf16"
    )
    memory = (
        f"Training it takes about {result.training_bytes / 1e9:,.2f} GB (the model in bf16 "
        f"{result.model_bytes / 1e9:,.2f} GB, the rest for what learns and AdamW), and activations on top: they grow "
        "with image size and batch_size."
    )
    return "\n".join([*lines, "", total, memory])


def _demo(result: "DemoResult", verbose: bool) -> str:
    adapter = result.extract.adapter
    pictures = [made for made in result.infer.outputs if made.comparison]
    return paragraphs(
        "1. base",
        _base(result.base, verbose),
        "2. extract",
        written(adapter, result.extract.sidecar),
        "3. validate",
        _validate(result.validate, verbose),
        "4. infer",
        _infer(result.infer, verbose),
        f"Look at {file_of(result.validate.files, '.html')} and {file_of(result.validate.files, '.png')}"
        + (f", and at {pictures[0].comparison}" if pictures else ""),
    )


_PRESENTERS: dict[str, Callable[[Any, bool], str]] = {
    "base": _base,
    "extract": _extract,
    "calibrate": calibrate,
    "refine": refine,
    "validate": _validate,
    "infer": _infer,
    "infer_shards": _infer_shards,
    "fuse": _fuse,
    "train": train,
    "data_pack": data_pack,
    "data_check": data_check,
    "layers": _layers,
    "demo": _demo,
}
