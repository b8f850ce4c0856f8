"""Run the main job on the bundled mini model: the verb `demo`."""

from dataclasses import dataclass, replace

from lbm_lora import bundled
from lbm_lora.configs.demo import DemoConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.errors import CheckpointError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.compress import CompressResult, compress
from lbm_lora.workflows import infer

IMAGE = "milk-06-lobby-to-dawn"
"""Pair to relight: one that compress holds out."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results of the two commands."""

    compress: CompressResult
    infer: infer.InferResult


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
    relight = InferConfig(
        base_model_path=config.output,
        tuned_model_path=bundled.TUNED / "model.safetensors",
        source_image=str(bundled.PAIRS / f"{IMAGE}.source.png"),
        mask=str(bundled.PAIRS / f"{IMAGE}.mask.png"),
        output_path=str(config.output / "relit.png"),
        compare=True,
        overwrite=config.overwrite,
    )
    infer.plan(relight, relight.source_image, relight.mask)  # its outputs too are checked before anything starts
    made = compress(
        bundled.TUNED,
        size=config.size,
        images=str(bundled.PAIRS / "*.source.png"),
        output=config.output,
        name="relight",
        count=6,  # of 9: enough for so small a model, and a third less to wait
        overwrite=config.overwrite,
        progress=progress,
    )
    relit = infer.run(replace(relight, base_model_path=made.base, lora_path=(made.adapter,)), progress)
    return DemoResult(compress=made, infer=relit)
