"""The text of the results of what learns or is measured by running: calibrate, refine, train, and its data."""

import math
from typing import TYPE_CHECKING

from lbm_lora.cli.wording import FEW, left_out, paragraphs, written

if TYPE_CHECKING:
    from lbm_lora.train.data.check import Checked
    from lbm_lora.train.preview import Scores
    from lbm_lora.workflows.calibrate import CalibrateResult
    from lbm_lora.workflows.data_check import CheckResult
    from lbm_lora.workflows.data_pack import PackResult
    from lbm_lora.workflows.refine import RefineResult
    from lbm_lora.workflows.train import TrainResult


def calibrate(result: "CalibrateResult", _: bool) -> str:
    timesteps = ", ".join(f"{timestep:g}" for timestep in result.timesteps)
    measured = (
        f"Measured {result.layers:,} layers on {result.images} images at timesteps {timesteps}, "
        f"{result.probes} probes each: {result.moments:,} second moments."
    )
    return paragraphs(measured, written(result.statistics))


def refine(result: "RefineResult", _: bool) -> str:
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
    return paragraphs(f"Learnt from {result.images} pictures.", measured, written(result.adapter))


def train(result: "TrainResult", _: bool) -> str:
    files = [path for path in (result.last, result.best) if path is not None]
    if result.stopped_by:
        head = (
            f"Stopped by {result.stopped_by} after step {result.step:,} of {result.total:,}, and saved. "
            "The same command goes on from there."
        )
    else:
        loss = "" if math.isnan(result.loss) else f", last loss {result.loss:.5f}"  # nan: there was nothing left to do
        head = (
            f"Trained {result.step:,} of {result.total:,} steps, {result.learning:,} parameters{loss}, "
            f"{result.seconds:,.0f} s."
        )
    best = f"{result.best} is of step {result.best_step:,}." if result.best and result.best_step is not None else ""
    return paragraphs(head, _scores(result.scores), written(*files), best)


def _scores(scores: "Scores | None") -> str:
    if scores is None:
        return ""
    losses = ", ".join(f"{loss:.5f} at {timestep:g}" for timestep, loss in scores.losses.items())
    lines = [f"Validation of {scores.samples} pairs: loss {scores.loss:.5f} ({losses})"]
    for steps, made in scores.pictures.items():
        lpips = "" if made.lpips is None else f", LPIPS {made.lpips:.4f}"
        lines.append(f"  steps {steps}: PSNR {made.psnr:.2f} dB, SSIM {made.ssim:.4f}{lpips}")
    return "\n".join(lines)


def data_pack(result: "PackResult", verbose: bool) -> str:
    head = f"Packed {result.pairs:,} pairs, {result.masks:,} with a mask, into {len(result.shards):,} shards."
    return paragraphs("\n".join([head, *left_out(result.skipped, verbose)]), f'train_shards: ["{result.pattern}"]')


def data_check(result: "CheckResult", verbose: bool) -> str:
    return paragraphs(*(_checked(split.split, split.found, verbose) for split in result.splits))


def _checked(split: str, found: "Checked", verbose: bool) -> str:
    skipped = [f"    {item.key}: {item.reason}" for item in found.skipped]
    shown = skipped if verbose else skipped[:FEW]
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
