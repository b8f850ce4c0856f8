"""Results of the commands that make, measure and improve LoRAs: extract, validate, calibrate, refine, resize."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbm_lora.errors import listing
from lbm_lora.factorize import FULL_RANK
from lbm_lora.ranks import SHIFTS
from lbm_lora.report import Report, full_text, short_text
from lbm_lora.report.table import numbers, table, words
from lbm_lora.report.wording import NOTHING, decibel, megabytes, percent, plural, printable
from lbm_lora.verbs.lines import file_lines, layer_lines, paragraphs, twin_files

if TYPE_CHECKING:
    from lbm_lora.ranks import Prediction
    from lbm_lora.workflows.calibrate import CalibrateResult
    from lbm_lora.workflows.extract import ExtractResult
    from lbm_lora.workflows.refine import RefineResult
    from lbm_lora.workflows.resize_result import ResizeResult
    from lbm_lora.workflows.validate import ValidateResult

_OTHER_SIZES = "Smaller and larger files, with ranks chosen for all layers together (--max_size), would give:"


def extract(result: "ExtractResult", verbose: bool) -> str:
    """Return weight errors, predicted and measured errors, and files; a table for several LoRAs."""
    every = [result, *result.further]
    if len(every) > 1:
        return paragraphs(
            *(f"{one.adapter.name}\n{layer_lines(one.report, verbose)}" for one in every if verbose),
            _comparison(every),
            "\n".join(result.notes),
            file_lines(*(path for one in every for path in (one.adapter, one.sidecar, *twin_files(one.twins)))),
        )
    return paragraphs(
        layer_lines(result.report, verbose),
        short_text(Report(weights=result.report)),
        _ranks(result),
        "\n".join(result.notes),
        _predictions(result),
        _shrinkage(result),
        _tried_images(result),
        file_lines(result.adapter, result.sidecar, *twin_files(result.twins)),
    )


def validate(result: "ValidateResult", verbose: bool) -> str:
    """Return the complete report."""
    return paragraphs(
        layer_lines(result.report.weights, verbose),
        full_text(result.report),
        file_lines(*result.files, result.layer_names),
    )


def calibrate(result: "CalibrateResult", _: bool) -> str:
    """Return the measurements, and the images they were made on."""
    timesteps = ", ".join(f"{timestep:g}" for timestep in result.timesteps)
    measured = (
        f"Measured {plural(result.layers, 'layer')} on {plural(result.images, 'image')} at timesteps {timesteps}, "
        f"{plural(result.probes, 'probe')} each: {plural(result.moments, 'second moment')}."
    )
    return paragraphs(measured, file_lines(result.statistics))


def refine(result: "RefineResult", _: bool) -> str:
    """Return the errors of the denoiser's output before and after."""
    before, after = result.before, result.after
    kept = (
        f"{result.gain:.1f} dB better, of step {result.step:,} of {result.steps:,}"
        if result.step
        else "no step was better, so the given LoRA is kept"
    )
    measured = (
        f"Error of the denoiser's output on {plural(result.held, 'other image')}: typical {percent(before.typical)} -> "
        f"{percent(after.typical)}, worst {percent(before.worst)} -> {percent(after.worst)}; {kept}."
    )
    return paragraphs(
        f"Learnt from {plural(result.images, 'image')}.",
        measured,
        file_lines(result.adapter, *twin_files(result.twins)),
    )


def resize(result: "ResizeResult", verbose: bool) -> str:
    """Return ranks, bytes and errors before and after, as a table; predicted and measured errors, and files."""
    every = [result, *result.further]
    head = printable(f"{plural(len(every), 'LoRA')} of {result.source}, with the error against it")
    return paragraphs(
        *(f"{one.adapter.name}\n{_resized_layers(one)}" for one in every if verbose),
        "\n".join([f"{head}:", *_resizes(every)]),
        "\n".join(f"{one.adapter.name}: {note}" if result.further else note for one in every for note in one.notes),
        *(() if result.further else (_predictions(result), _tried_images(result, "those of the LoRA before"))),
        file_lines(*(one.adapter for one in every)),
    )


def _resizes(every: "Sequence[ResizeResult]") -> list[str]:
    first = every[0]
    has_output = first.predicted.of == "output"
    heads = ["rank up to", "conv rank up to", "bytes", "error of weights", *(["of output"] if has_output else [])]
    heads += ["PSNR", "worst"] if first.images is not None else []
    before = [f"{first.linear_rank_before:,}", f"{first.conv_rank_before:,}", megabytes(first.nbytes_before)]
    rows = [[*before, *([NOTHING] * (len(heads) - len(before))), first.source]]
    for one in every:
        row = [f"{one.linear_rank:,}", f"{one.conv_rank:,}", megabytes(one.nbytes), percent(one.resize_error)]
        row += [percent(one.predicted.error)] if has_output else []
        row += [decibel(value) for value in (one.images.mean_psnr, one.images.worst_psnr)] if one.images else []
        rows.append([*row, one.adapter.name])
    return table([*map(numbers, heads), words("file")], rows)


def _resized_layers(result: "ResizeResult") -> str:
    columns = [words("layer"), words("kept as"), numbers("rank before"), numbers("rank"), numbers("error")]
    rows = [
        (one.name, one.status, str(one.rank_before or NOTHING), str(one.rank or NOTHING), percent(one.relative_error))
        for one in result.layers
    ]
    return "\n".join(table(columns, rows))


def _ranks(result: "ExtractResult") -> str:
    """Return the requested ranks, or the highest chosen ones."""
    if _is_chosen(result):
        return f"Ranks chosen for all layers together: up to {result.linear_rank}, for convs up to {result.conv_rank}."
    return f"Rank {_rank(result.linear_rank)}, conv rank {_rank(result.conv_rank)}, each as far as its matrix allows."


def _is_chosen(result: "ExtractResult") -> bool:
    return bool(result.sizes)


def _comparison(results: "Sequence[ExtractResult]") -> str:
    """LoRAs of several ranks or sizes side by side."""
    first = results[0]
    is_output = first.predicted is not None and first.predicted.of == "output"
    heads = ["rank", "conv rank", "bytes", "error of weights"]
    heads += ["of output"] if is_output else []
    heads += ["PSNR", "worst"] if first.images is not None else []
    rows: list[list[str]] = []
    for one in results:
        row = [_rank(one.linear_rank), _rank(one.conv_rank), megabytes(one.nbytes), percent(one.report.relative_error)]
        if is_output and one.predicted is not None:
            row.append(percent(one.predicted.error))
        if one.images is not None:
            row += [f"{one.images.mean_psnr:.1f}", f"{one.images.worst_psnr:.1f}"]
        rows.append([*row, one.adapter.name])
    highest = ", with the highest of the ranks" if _is_chosen(first) else ""
    head = f"{plural(len(results), 'LoRA')}: {first.report.base} + LoRA against {first.report.tuned}{highest}"
    return "\n".join([head, *table([*map(numbers, heads), words("file")], rows)])


def _rank(rank: int) -> str:
    return "full" if rank >= FULL_RANK else f"{rank:,}"


def _predictions(result: "ExtractResult | ResizeResult") -> str:
    """Return the expected errors of the file, and those of smaller and larger files."""
    if result.predicted is None:
        return ""
    head = _predicted(result.predicted)
    rows = [(megabytes(other.nbytes), percent(other.error)) for other in result.sizes]
    return "\n".join([f"{head} {_OTHER_SIZES}" if rows else head, *table([numbers(), numbers()], rows)])


def _predicted(found: "Prediction") -> str:
    if found.of != "output":
        return f"Predicted relative error of the weights: {percent(found.error)}."
    what = f"relative error of the denoiser's output: {percent(found.error)}"
    if found.low is None or found.high is None:
        return (
            f"Lower bound of the {what}, which takes layers as independent. Their errors add up: expect 1.1 to 6 times "
            "as much. Only a run measures it."
        )
    middle = f", 80 % of such inputs between {percent(found.low)} and {percent(found.high)}"
    shifted = listing(
        f"{percent(error)} ({_within(found.shifted_within[kind])}) on inputs {SHIFTS[kind]}"
        for kind, error in found.shifted.items()
    )
    return f"Predicted {what}{middle}{f'; {shifted}' if shifted else ''}."


def _within(limits: tuple[float, float]) -> str:
    low, high = limits
    return f"{percent(low)} to {percent(high)}"


def _shrinkage(result: "ExtractResult") -> str:
    """Return how the LoRA compares with plain SVD, and what was done where it was worse."""
    found = result.shrinkage
    if found is None:
        return ""
    used = {
        "given": "Better than plain SVD of the same size, with the statistics as they are",
        "shrunk": f"The statistics were worse than plain SVD on some inputs, and shrunk with a ridge of {found.ridge}",
        "plain": "The statistics were worse than plain SVD on some inputs, so plain SVD was used",
    }[found.kind]
    pairs = [("like the calibration's", found.errors.typical, found.plain.typical)]
    if found.errors.typical_shifted is not None and found.plain.typical_shifted is not None:
        pairs.append(("unlike them", found.errors.typical_shifted, found.plain.typical_shifted))
    errors = [f"{percent(one)} against {percent(other)} on inputs {kind}" for kind, one, other in pairs]
    useless = (
        f" The base without a LoRA has {percent(found.base.typical)}: this file is too small to help."
        if found.base is not None and found.is_useless
        else ""
    )
    return f"{used}: output error {', '.join(errors)}.{useless}"


def _tried_images(result: "ExtractResult | ResizeResult", reference: str = "the tuned model's") -> str:
    """Return the PSNR of the images that the LoRA was run on."""
    found = result.images
    if found is None:
        return ""
    predicted = "" if found.predicted_psnr is None else f", predicted {found.predicted_psnr:.1f} dB"
    return (
        f"One-step images against {reference}, {found.count:,} of them: PSNR {found.mean_psnr:.1f} dB on "
        f"average, {found.worst_psnr:.1f} dB at worst ({printable(found.worst_image)}{predicted})."
    )
