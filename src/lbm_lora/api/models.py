"""Checkpoints made, measured, listed, inspected, fused and run: make_base, layers, inspect, fuse, infer."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbm_lora.api.options import Options
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.configs.infer import InferConfig
from lbm_lora.hub import open_checkpoint
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.values import Images, LoraLike, image_files, listed, opened_files

if TYPE_CHECKING:
    from lbm_lora.workflows.infer import InferResult

_INFER = Options(
    InferConfig,
    hidden=(
        *("base_model_path", "lora_path", "tuned_model_path", "source_image", "output_path", "mask"),
        "backbone_signature",  # make_base makes a base
    ),
)


@_INFER.documented
def infer(
    base: CheckpointLike,
    images: Images,
    output_path: Path | str,
    lora: LoraLike | Sequence[LoraLike] = (),
    *,
    mask: Images | None = None,
    tuned: CheckpointLike | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> "InferResult":
    """Translate images with an LBM checkpoint and any number of LoRAs, and write the results.

    Args:
        base: the checkpoint that the LoRAs were made for, or any LBM: a path, an open checkpoint or a state dict.
        images: images to translate. PIL images are named image-1.png and so on.
        output_path: file to write, or a folder; several images need a folder. The format follows the extension.
        lora: LoRAs, all applied together: paths or adapters. None: the checkpoint as it is.
        mask: a mask, or a folder with one of each image's name, or one for each image: white takes the result, black
            keeps the source.
        tuned: the fully fine-tuned checkpoint, for the last column of `compare`.
        progress: a listener.

    Returns:
        The files that were written, and what of each LoRA was applied.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from lbm_lora.workflows import infer as infer_workflow

    loras = listed(lora)
    with ExitStack() as stack:
        opened = stack.enter_context(open_checkpoint(base, label="base state dict"))
        sources = stack.enter_context(image_files(images))
        masks = None if mask is None else stack.enter_context(image_files(mask))
        compared = None if tuned is None else stack.enter_context(open_checkpoint(tuned, label="tuned state dict"))
        config = _INFER.bind(
            "infer",
            options,
            base_model_path=opened.path,
            lora_path=tuple(one for one in loras if isinstance(one, Path)),
            tuned_model_path=None if compared is None else compared.path,
            source_image=str(sources),
            output_path=str(Path(output_path)) if isinstance(output_path, Path) else output_path,
        )
        jobs = infer_workflow.plan(config, sources, masks, opened=opened_files(images, mask))
        return infer_workflow.translated(config, jobs, opened, loras, compared, progress)
