"""Results of the commands that measure and improve LoRAs: validate, resize."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbm_lora.report import full_text
from lbm_lora.report.table import numbers, table, words
from lbm_lora.report.wording import NOTHING, decibel, megabytes, percent, plural, printable
from lbm_lora.verbs.lines import file_lines, image_lines, layer_lines, paragraphs, prediction_lines

if TYPE_CHECKING:
    from lbm_lora.workflows.resize_result import ResizeResult
    from lbm_lora.workflows.validate import ValidateResult


def validate(result: "ValidateResult", verbose: bool) -> str:
    """Return the complete report."""
    return paragraphs(
        layer_lines(result.report.weights, verbose),
        full_text(result.report),
        file_lines(*result.files, result.layer_names),
    )


def resize(result: "ResizeResult", verbose: bool) -> str:
    """Return ranks, bytes and errors before and after, as a table; predicted and measured errors, and files."""
    every = [result, *result.further]
    head = printable(f"{plural(len(every), 'LoRA')} of {result.source}, with the error against it")
    return paragraphs(
        *(f"{one.adapter.name}\n{_resized_layers(one)}" for one in every if verbose),
        "\n".join([f"{head}:", *_resizes(every)]),
        "\n".join(f"{one.adapter.name}: {note}" if result.further else note for one in every for note in one.notes),
        *(
            ()
            if result.further
            else (
                prediction_lines(result.predicted, result.sizes),
                image_lines(result.images, "those of the LoRA before"),
            )
        ),
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
