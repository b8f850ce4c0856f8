"""Results of `push`."""

from typing import TYPE_CHECKING

from lbm_lora.errors import plural
from lbm_lora.report.table import numbers, table, words
from lbm_lora.report.wording import megabytes, printable
from lbm_lora.verbs.lines import paragraphs

if TYPE_CHECKING:
    from lbm_lora.workflows.push import PushResult


def push(result: "PushResult", verbose: bool) -> str:
    """Return where the LoRA was published, and its files."""
    is_only_written = result.folder is not None
    head = (
        printable(f"Written to {result.folder}. Nothing was uploaded.")
        if is_only_written
        else f"Published at {result.url}"
    )
    rows = [(megabytes(file.nbytes), file.path) for file in result.files]
    left_out = (
        f"The file for diffusers leaves out {plural(len(result.dropped), 'tensor')} that it cannot hold."
        if result.dropped
        else ""
    )
    use = "" if is_only_written else f"Use it: --lora_path {result.repo}"
    return paragraphs(
        "\n".join([head, *table([numbers(), words()], rows)]),
        "\n".join(filter(None, [left_out, *(result.dropped if verbose else ())])),
        use,
    )
