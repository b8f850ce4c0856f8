"""The results of what makes, measures and improves LoRAs: extract, validate, calibrate, refine."""

from typing import TYPE_CHECKING

from lbm_lora.cli.present.lines import layer_lines, paragraphs, written
from lbm_lora.report import Report, full_text, short_text
from lbm_lora.report.text.tables import numbers, table
from lbm_lora.report.wording import megabytes, plural

if TYPE_CHECKING:
    from lbm_lora.workflows.calibrate import CalibrateResult
    from lbm_lora.workflows.extract import ExtractResult
    from lbm_lora.workflows.refine import RefineResult
    from lbm_lora.workflows.validate import ValidateResult


def extract(result: "ExtractResult", verbose: bool) -> str:
    """The errors of the weights, what was predicted and measured, and the files; then those of the further LoRAs."""
    return paragraphs(
        layer_lines(result.report, verbose),
        short_text(Report(weights=result.report)),
        "\n".join(result.notes),
        _predictions(result),
        _tried_images(result),
        written(result.adapter, result.sidecar),
        *(extract(further, verbose) for further in result.further),
    )


def validate(result: "ValidateResult", verbose: bool) -> str:
    """The complete report."""
    return paragraphs(
        layer_lines(result.report.weights, verbose),
        full_text(result.report),
        written(*result.files, result.layer_names),
    )


def calibrate(result: "CalibrateResult", _: bool) -> str:
    """What was measured on what."""
    timesteps = ", ".join(f"{timestep:g}" for timestep in result.timesteps)
    measured = (
        f"Measured {plural(result.layers, 'layer')} on {plural(result.images, 'image')} at timesteps {timesteps}, "
        f"{plural(result.probes, 'probe')} each: {plural(result.moments, 'second moment')}."
    )
    return paragraphs(measured, written(result.statistics))


def refine(result: "RefineResult", _: bool) -> str:
    """The errors of the denoiser's output before and after."""
    before, after = result.before, result.after
    kept = (
        f"{result.gain:.1f} dB better, of step {result.step:,} of {result.steps:,}"
        if result.step
        else "no step was better: the given LoRA is kept"
    )
    measured = (
        f"Error of the denoiser's output on {plural(result.held, 'other image')}: typical {before.typical:.3%} -> "
        f"{after.typical:.3%}, worst {before.worst:.3%} -> {after.worst:.3%}; {kept}."
    )
    return paragraphs(f"Learnt from {plural(result.images, 'image')}.", measured, written(result.adapter))


def _predictions(result: "ExtractResult") -> str:
    """What was expected of the file, and what smaller and larger files would give."""
    if result.predicted is None:
        return ""
    what = "error of the denoiser's output" if result.predicted.of == "output" else "error of the weights"
    head = f"Predicted relative {what}: {result.predicted.error:.3%}."
    rows = [(megabytes(other.nbytes), f"{other.error:.3%}") for other in result.sizes]
    return "\n".join(
        [f"{head} Smaller and larger files would give:" if rows else head, *table([numbers(), numbers()], rows)]
    )


def _tried_images(result: "ExtractResult") -> str:
    """What the images came to that the LoRA was run on."""
    found = result.images
    if found is None:
        return ""
    predicted = "" if found.predicted_psnr is None else f", predicted {found.predicted_psnr:.1f} dB"
    return (
        f"One-step images against the tuned model's, {found.count:,} of them: PSNR {found.mean_psnr:.1f} dB in the "
        f"mean, {found.worst_psnr:.1f} dB at worst ({found.worst_image}{predicted})."
    )
