"""Results of infer, for images and for shards."""

from typing import TYPE_CHECKING

from lbm_lora.report.wording import plural, printable
from lbm_lora.verbs.lines import paragraphs, skipped_lines

if TYPE_CHECKING:
    from lbm_lora.workflows.infer import InferResult, TranslatedImage
    from lbm_lora.workflows.infer_shards import InferShardsResult


def infer(result: "InferResult", _: bool) -> str:
    """Return each written image, and each failed one with its reason."""
    lines = [printable(line) for made in result.outputs for line in _lines_of(made)]
    head = f"Translated {plural(len(result.outputs), 'image')} on {result.device} in {result.dtype}"
    if result.present:
        head += f"; {plural(result.present, 'image')} already existed"
    failed = [printable(f"  {image.reason}") for image in result.failed]
    return paragraphs(
        "\n".join([f"{head}:", *lines]) if lines else f"{head}.",
        "\n".join([f"{plural(len(failed), 'image')} failed:", *failed]) if failed else "",
    )


def _lines_of(made: "TranslatedImage") -> list[str]:
    """Return the files of one image."""
    lines = [
        f"  {made.source.name} {made.width}x{made.height} -> {made.output} "
        f"(model {made.model_width}x{made.model_height}, {made.seconds:.1f} s)"
    ]
    if made.comparison:
        lines.append(f"    side by side: {made.comparison}")
    if made.source_copy:
        lines.append(f"    source: {made.source_copy}")
    return lines


def infer_shards(result: "InferShardsResult", verbose: bool) -> str:
    """Return the counts of written, existing and unusable shards and images."""
    head = (
        f"Translated {plural(result.images, 'image')} of {plural(result.written, 'shard')} into {result.folder} on "
        f"{result.device} in {result.dtype}; {plural(result.present, 'shard')} already existed."
    )
    if result.stopped_by:
        head = f"Stopped by {result.stopped_by}. {head} Run the same command to resume."
    head = printable(head)
    if not result.skipped:
        return head
    count = f"{plural(len(result.skipped), 'sample')} cannot be used."
    return paragraphs(head, "\n".join([count, *skipped_lines(result.skipped, verbose)]))
