"""The text of each command's result on stdout.

A result says what it is by its command, so that no other command's libraries are imported to present it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbm_lora.report import Report, base_text, full_text, short_text
from lbm_lora.report.schema import TensorResult

if TYPE_CHECKING:
    from lbm_lora.shards.corrupt import Skipped
    from lbm_lora.train.data.check import Checked
    from lbm_lora.train.preview import Scores
    from lbm_lora.workflows.base import BaseOutcome
    from lbm_lora.workflows.calibrate import CalibrateResult
    from lbm_lora.workflows.data import CheckResult, PackResult
    from lbm_lora.workflows.demo import DemoResult
    from lbm_lora.workflows.extract import ExtractResult
    from lbm_lora.workflows.fuse import FuseResult
    from lbm_lora.workflows.infer_result import InferResult, TranslatedShards
    from lbm_lora.workflows.layers import LayersResult
    from lbm_lora.workflows.refine import RefineResult
    from lbm_lora.workflows.train import TrainResult
    from lbm_lora.workflows.validate import ValidateResult

_FEW = 8
"""Names that are listed without --verbose."""


def present(command: str, result: Any, *, verbose: bool = False) -> str:
    """What a user reads of a command's result; with `verbose`, every layer too."""
    return _PRESENTERS[command](result, verbose)


def _base(result: "BaseOutcome", verbose: bool) -> str:
    items = result.base.ledger if verbose else ()
    rows = [f"  {item.action:<8} {item.key} {item.from_shape} -> {item.to_shape}: {item.reason}" for item in items]
    return _paragraphs(
        "\n".join(rows),
        base_text(result.base.ledger, result.baseline),
        "\n".join(result.base.notes),
        _written(result.base.safetensors, result.base.ckpt, result.ledger_file),
    )


def _extract(result: "ExtractResult", verbose: bool) -> str:
    rows = [_layer_line(row) for row in result.report.rows] if verbose else []
    return _paragraphs(
        "\n".join(rows),
        short_text(Report(weights=result.report)),
        "\n".join(result.notes),
        _predictions(result),
        _tried_pictures(result),
        _written(result.adapter, result.sidecar),
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
    found = result.pictures
    if found is None:
        return ""
    predicted = "" if found.predicted_psnr is None else f", predicted {found.predicted_psnr:.1f} dB"
    return (
        f"One-step pictures against the tuned model's, {found.count} of them: PSNR {found.mean_psnr:.1f} dB in the "
        f"mean, {found.worst_psnr:.1f} dB at worst ({found.worst_image}{predicted})."
    )


def _calibrate(result: "CalibrateResult", _: bool) -> str:
    timesteps = ", ".join(f"{timestep:g}" for timestep in result.timesteps)
    measured = (
        f"Measured {result.layers:,} layers on {result.images} images at timesteps {timesteps}, "
        f"{result.probes} probes each: {result.moments:,} second moments."
    )
    return _paragraphs(measured, _written(result.statistics))


def _refine(result: "RefineResult", _: bool) -> str:
    before, after = result.before, result.after
    kept = (
        f"{result.gain:.1f} dB better, of step {result.step:,} of {result.steps:,}"
        if result.step
        else "no step was better: the given LoRA is kept"
    )
    measured = (
        f"Error of the denoiser's output on {result.held} other pictures: typical {before.typical:.3%} -> "
        f"{after.typical:.3%}, worst {before.worst:.3%} -> {after.worst:.3%}; {kept}."
    )
    return _paragraphs(f"Learnt from {result.images} pictures.", measured, _written(result.adapter))


def _validate(result: "ValidateResult", verbose: bool) -> str:
    rows = [_layer_line(row) for row in result.report.weights.rows] if verbose else []
    return _paragraphs("\n".join(rows), full_text(result.report), _written(*result.files, result.layer_names))


def _infer(result: "InferResult", verbose: bool) -> str:
    if result.shards is not None:
        return _infer_shards(result, result.shards, verbose)
    lines = [
        f"  {made.source.name} {made.width}x{made.height} -> {made.output} "
        f"(model {made.model_width}x{made.model_height}, {made.seconds:.1f} s)"
        + (f"\n    side by side: {made.comparison}" if made.comparison else "")
        for made in result.outputs
    ]
    return "\n".join([f"Translated {len(result.outputs)} on {result.device} in {result.dtype}:", *lines])


def _infer_shards(result: "InferResult", shards: "TranslatedShards", verbose: bool) -> str:
    head = (
        f"Translated {shards.pictures:,} pictures of {shards.written:,} shards into {shards.folder} on {result.device} "
        f"in {result.dtype}; {shards.present:,} shards were there already."
    )
    if shards.stopped_by:
        head = f"Stopped by {shards.stopped_by}. {head} The same command goes on from there."
    count = f"{len(shards.skipped):,} samples cannot be used." if shards.skipped else ""
    return _paragraphs(head, "\n".join([count, *_left_out(shards.skipped, verbose)]) if count else "")


def _fuse(result: "FuseResult", _: bool) -> str:
    changed = f"{result.changed:,} of {result.tensors:,} tensors changed"
    return f"Fused: {changed}, the others copied byte for byte.\n{_written(result.output)}"


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


def _train(result: "TrainResult", _: bool) -> str:
    files = [path for path in (result.last, result.best) if path is not None]
    if result.stopped_by:
        head = (
            f"Stopped by {result.stopped_by} after step {result.step:,} of {result.total:,}, and saved. "
            "The same command goes on from there."
        )
    else:
        head = (
            f"Trained {result.step:,} of {result.total:,} steps, {result.learning:,} parameters, last loss "
            f"{result.loss:.5f}, {result.seconds:,.0f} s."
        )
    best = f"{result.best} is of step {result.best_step:,}." if result.best and result.best_step is not None else ""
    return _paragraphs(head, _scores(result.scores), _written(*files), best)


def _scores(scores: "Scores | None") -> str:
    if scores is None:
        return ""
    losses = ", ".join(f"{loss:.5f} at {timestep:g}" for timestep, loss in scores.losses.items())
    lines = [f"Validation of {scores.samples} pairs: loss {scores.loss:.5f} ({losses})"]
    for steps, made in scores.pictures.items():
        lpips = "" if made.lpips is None else f", LPIPS {made.lpips:.4f}"
        lines.append(f"  steps {steps}: PSNR {made.psnr:.2f} dB, SSIM {made.ssim:.4f}{lpips}")
    return "\n".join(lines)


def _data_pack(result: "PackResult", verbose: bool) -> str:
    head = f"Packed {result.pairs:,} pairs, {result.masks:,} with a mask, into {len(result.shards):,} shards."
    return _paragraphs("\n".join([head, *_left_out(result.skipped, verbose)]), f'train_shards: ["{result.pattern}"]')


def _left_out(skipped: "Sequence[Skipped]", verbose: bool) -> list[str]:
    """The first samples that cannot be used, or all of them."""
    lines = [f"  left out: {item.key}: {item.reason}" for item in skipped]
    shown = lines if verbose else lines[:_FEW]
    more = [f"  and {len(lines) - len(shown)} more (--verbose lists them)"] if len(shown) < len(lines) else []
    return [*shown, *more]


def _data_check(result: "CheckResult", verbose: bool) -> str:
    return _paragraphs(*(_checked(split.split, split.found, verbose) for split in result.splits))


def _checked(split: str, found: "Checked", verbose: bool) -> str:
    skipped = [f"    {item.key}: {item.reason}" for item in found.skipped]
    shown = skipped if verbose else skipped[:_FEW]
    more = [f"    and {len(skipped) - len(shown)} more (--verbose lists them)"] if len(shown) < len(skipped) else []
    masks = f"{found.masks:,} masks" + (f", {found.mask_share:.1%} white on average" if found.mask_share else "")
    buckets = ", ".join(f"{count.width}x{count.height}: {count.samples:,}" for count in found.buckets)
    return "\n".join(
        [
            f"{split}: {found.where}",
            f"  {found.pairs:,} pairs, {found.nbytes / 1e6:,.2f} MB, {masks}",
            f"  {len(found.skipped):,} cannot be used ({found.corrupt_share:.1%})",
            *shown,
            *more,
            f"  sizes in training: {buckets}",
            f"  {found.steps:,} steps in an epoch",
            *(f"  {note}" for note in found.notes),
        ]
    )


def _demo(result: "DemoResult", verbose: bool) -> str:
    adapter = result.extract.adapter
    pictures = [made for made in result.infer.outputs if made.comparison]
    return _paragraphs(
        "1. base",
        _base(result.base, verbose),
        "2. extract",
        _written(adapter, result.extract.sidecar),
        "3. validate",
        _validate(result.validate, verbose),
        "4. infer",
        _infer(result.infer, verbose),
        f"Look at {_file(result.validate.files, '.html')} and {_file(result.validate.files, '.png')}"
        + (f", and at {pictures[0].comparison}" if pictures else ""),
    )


_PRESENTERS: dict[str, Callable[[Any, bool], str]] = {
    "base": _base,
    "extract": _extract,
    "calibrate": _calibrate,
    "refine": _refine,
    "validate": _validate,
    "infer": _infer,
    "fuse": _fuse,
    "train": _train,
    "data pack": _data_pack,
    "data check": _data_check,
    "layers": _layers,
    "demo": _demo,
}


def _layer_line(row: TensorResult) -> str:
    """The documented line of `--verbose`, one per layer."""
    kind = "DENSE" if row.status == "dense" else "CONV" if len(row.shape) == 4 else "LINEAR"
    if row.status not in ("lora", "dense"):
        return f"  - {row.name} | {row.status}: {row.reason}"
    rank = f"rank {row.rank}" if row.rank else "whole"
    return f"  ✓ {row.name} | {kind} | {rank} | error {100 * row.relative_error:.3f} %"


def _written(*paths: Path) -> str:
    return "\n".join(f"wrote {path} ({_size(path)})" for path in paths)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:,.2f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"


def _file(paths: tuple[Path, ...], suffix: str) -> str:
    return str(next((path for path in paths if path.suffix == suffix), ""))


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
