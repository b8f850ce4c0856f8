"""Run the main job on the bundled mini model: the verb `demo`."""

from dataclasses import dataclass

from lbm_lora import bundled
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.configs.demo import DemoConfig
from lbm_lora.errors import CheckpointError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.infer import InferResult, infer
from lbm_lora.workflows import compress

IMAGE = "milk-06-lobby-to-dawn"
"""Pair to relight: one that compress holds out."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results of the two commands."""

    compress: compress.CompressResult
    infer: InferResult


def run(config: DemoConfig, progress: Progress = SILENT) -> DemoResult:
    """Run compress on the bundled model and pairs, then infer with a mask.

    Raises:
        CheckpointError: the package was installed without its bundled model.
    """
    if not (bundled.TUNED / "model.safetensors").exists():
        raise CheckpointError(
            f"{bundled.TUNED / 'model.safetensors'} is missing: this installation has no bundled mini model. "
            "Install it again."
        )
    made = compress.run(
        CompressConfig(
            tuned=bundled.TUNED,
            size=config.size,
            images=(str(bundled.PAIRS / "*.source.png"),),
            output=config.output,
            name="relight",
            count=6,  # of 9: enough for so small a model, and a third less to wait
            overwrite=config.overwrite,
        ),
        progress,
    )
    relit = infer(
        made.base,
        bundled.PAIRS / f"{IMAGE}.source.png",
        config.output / "relit.png",
        made.adapter,
        mask=bundled.PAIRS / f"{IMAGE}.mask.png",
        tuned=bundled.TUNED / "model.safetensors",
        compare=True,
        overwrite=config.overwrite,
        progress=progress,
    )
    return DemoResult(compress=made, infer=relit)
