"""A LoRA from a tuned checkpoint alone: compress."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbm_lora.api.options import Options
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.values import Images, image_files

if TYPE_CHECKING:
    from lbm_lora.workflows.compress import CompressResult

_COMPRESS = Options(CompressConfig, hidden=("tuned", "images"))


@_COMPRESS.documented
def compress(
    tuned: Path | str, *, images: Images | None = None, progress: Progress = SILENT, **options: Any
) -> "CompressResult":
    """Make a small LoRA of a fine-tuned model in one step: base, calibration, extraction, and comparison in images.

    All of it is written to the folder `output`: the LoRA, the base, the statistics and the report.

    Args:
        tuned: the fine-tuned checkpoint, or the folder that holds it with its config.yaml.
        images: sources of the kind that the model is used on. Every fourth one is held out to measure on, 8 at most.
            None: the four photos that come with the package.
        progress: a listener.

    Returns:
        The LoRA, how close it comes to the tuned model, and where everything lies.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from lbm_lora.workflows.compress import run

    with ExitStack() as stack:
        sources = () if images is None else stack.enter_context(image_files(images))
        texts = (sources,) if isinstance(sources, str) else sources
        return run(_COMPRESS.bind("compress", options, tuned=Path(tuned), images=texts), progress)
