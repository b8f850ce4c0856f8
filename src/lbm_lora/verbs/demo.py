"""Run the main job on the bundled mini model: the verb `demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lbm_lora.errors import CheckpointError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.compress import CompressResult, compress, compress_text
from lbm_lora.verbs.infer import InferResult, infer
from lbm_lora.verbs.options import Folder, Named, Overwrite
from lbm_lora.verbs.verb import START, verb

IMAGE = "milk-06-lobby-to-dawn"
"""Pair to relight: one that compress holds out."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results of the two commands."""

    compress: CompressResult
    infer: InferResult


def _text(result: DemoResult, verbose: bool) -> str:
    """Return the result of compress, and the image that was relit with it."""
    (relit,) = result.infer.outputs
    return f"{compress_text(result.compress, verbose)}\nRelit    {relit.output}, and {relit.comparison} side by side."


@verb(
    "compress the bundled mini model, and relight an image",
    group=START,
    examples=("lbm-lora demo", "lbm-lora demo --output my_demo --size 1MB"),
    text=_text,
)
def demo(
    *,
    overwrite: Overwrite = False,
    output: Folder = Path("demo"),
    size: Annotated[str, Named("SIZE")] = "2MB",
    progress: Progress = SILENT,
) -> tuple[DemoResult, DemoResult]:
    """Compress the bundled mini model, and relight an image with the LoRA. No download, no GPU.

    Args:
        output: Write everything to this folder.
        size: Largest size of the LoRA file.

    Raises:
        CheckpointError: the package was installed without its bundled model.
    """
    from lbm_lora import bundled
    from lbm_lora.files import Outputs
    from lbm_lora.inference.jobs import plan_jobs

    tuned = bundled.TUNED / "model.safetensors"
    if not tuned.exists():
        raise CheckpointError(f"{tuned} is missing: this installation has no bundled mini model. Install it again.")
    source, mask, relit = (
        bundled.PAIRS / f"{IMAGE}.source.png",
        bundled.PAIRS / f"{IMAGE}.mask.png",
        Path(output) / "relit.png",
    )
    plan_jobs(str(source), str(relit), mask=str(mask), compare=True, files=Outputs(overwrite=overwrite))  # checks both
    made = compress(
        bundled.TUNED,
        size=size,
        images=str(bundled.PAIRS / "*.source.png"),
        output=output,
        name="relight",
        count=6,  # of 9: enough for so small a model, and a third less to wait
        overwrite=overwrite,
        progress=progress,
    )
    translated = infer(
        made.base,
        str(source),
        str(relit),
        made.adapter,
        tuned=tuned,
        mask=str(mask),
        compare=True,
        overwrite=overwrite,
        progress=progress,
    )
    result = DemoResult(compress=made, infer=translated)
    return result, result
