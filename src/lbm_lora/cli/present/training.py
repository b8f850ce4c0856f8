"""The results of train, data pack and data check."""

import math
from typing import TYPE_CHECKING

from lbm_lora.cli.present.lines import file_lines, paragraphs, skipped_lines, twin_files
from lbm_lora.errors import listing
from lbm_lora.report.wording import megabytes, plural

if TYPE_CHECKING:
    from lbm_lora.training.data.check import Checked
    from lbm_lora.training.validation import Scores
    from lbm_lora.workflows.data_check import CheckResult
    from lbm_lora.workflows.data_pack import PackResult
    from lbm_lora.workflows.train import TrainResult


def train(result: "TrainResult", _: bool) -> str:
    """Return the progress of the run, its last validation, and its files."""
    files = [path for path in (result.last, result.best) if path is not None]
    is_new = bool(result.stopped_by) or not math.isnan(result.loss)  # nan: the run was complete, no step was left
    if result.stopped_by:
        head = (
            f"Stopped by {result.stopped_by} after step {result.step:,} of {result.total:,}, and saved. "
            "Run the same command to resume."
        )
    elif is_new:
        head = (
            f"Trained {result.step:,} of {result.total:,} steps, {result.learning:,} parameters, "
            f"last loss {result.loss:.5f}, {result.seconds:,.0f} s."
        )
    else:
        steps = (
            f"All {result.total:,} steps had been trained before"
            if result.step <= result.total
            else f"{result.step:,} steps had been trained before, more than the {result.total:,} asked for"
        )
        head = f"{steps}: {listing(map(str, files or [result.folder]))}."
    best = f"{result.best} is of step {result.best_step:,}." if result.best and result.best_step is not None else ""
    made = [*(files if is_new else ()), *twin_files(result.twins)]
    return paragraphs(head, _scores(result.scores), file_lines(*made), best)


def _scores(scores: "Scores | None") -> str:
    if scores is None:
        return ""
    losses = ", ".join(f"{loss:.5f} at {timestep:g}" for timestep, loss in scores.losses.items())
    lines = [f"Validation of {plural(scores.samples, 'pair')}: loss {scores.loss:.5f} ({losses})"]
    for steps, made in scores.images.items():
        lpips = "" if made.lpips is None else f", LPIPS {made.lpips:.4f}"
        lines.append(f"  steps {steps}: PSNR {made.psnr:.2f} dB, SSIM {made.ssim:.4f}{lpips}")
    return "\n".join(lines)


def data_pack(result: "PackResult", verbose: bool) -> str:
    """Return the contents of the shards, their key for a training file, and the command that checks them."""
    head = (
        f"Packed {plural(result.pairs, 'pair')}, {result.masks:,} with a mask, into "
        f"{plural(len(result.shards), 'shard')}."
    )
    needed = {
        "source_key": None if result.source_key == "source.jpg" else result.source_key,
        "target_key": None if result.target_key == "target.jpg" else result.target_key,
        "mask_key": result.mask_key,
    }
    keys = {name: key for name, key in needed.items() if key is not None}
    flags = "".join(f" --{name} {key}" for name, key in keys.items())
    return paragraphs(
        "\n".join([head, *skipped_lines(result.skipped, verbose)]),
        "\n".join(
            [
                "In a training file:",
                f'  train_shards: ["{result.pattern}"]',
                *(f"  {name}: {key}" for name, key in keys.items()),
            ]
        ),
        f'Next: lbm-lora data check "{result.pattern}"{flags}',
    )


def data_check(result: "CheckResult", verbose: bool) -> str:
    """Return the findings in each split of the data."""
    return paragraphs(*(_checked(split.split, split.found, verbose) for split in result.splits))


def _checked(split: str, found: "Checked", verbose: bool) -> str:
    masks = plural(found.masks, "mask") + (f", {found.mask_share:.1%} white on average" if found.mask_share else "")
    buckets = ", ".join(f"{count.width}x{count.height}: {count.samples:,}" for count in found.buckets)
    return "\n".join(
        [
            f"{split}: {found.where}",
            f"  {plural(found.pairs, 'pair')}, {megabytes(found.nbytes)}, {masks}",
            f"  {len(found.skipped):,} cannot be used ({found.corrupt_share:.1%})",
            *skipped_lines(found.skipped, verbose, indent=4),
            f"  sizes in training: {buckets}",
            f"  {plural(found.steps, 'step')} in an epoch",
            *(f"  {note}" for note in found.notes),
        ]
    )
