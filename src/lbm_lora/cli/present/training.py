"""The results of train, data pack and data check."""

import math
from typing import TYPE_CHECKING

from lbm_lora.errors import listing
from lbm_lora.report.wording import plural
from lbm_lora.verbs.lines import file_lines, paragraphs, twin_files

if TYPE_CHECKING:
    from lbm_lora.training.validation import Scores
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
