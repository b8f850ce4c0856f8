"""The main job on the bundled mini model: the verb `demo`."""

from dataclasses import dataclass

from lbm_lora import bundled
from lbm_lora.configs.base import BaseConfig
from lbm_lora.configs.demo import DemoConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.errors import CheckpointError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.workflows import base, extract, infer, validate


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The results of the four commands."""

    base: base.BaseResult
    extract: extract.ExtractResult
    validate: validate.ValidateResult
    infer: infer.InferResult


def run(config: DemoConfig, progress: Progress = SILENT) -> DemoResult:
    """Run the four commands on the bundled files.

    Raises:
        CheckpointError: the package was installed without its bundled model.
    """
    tuned = bundled.TUNED / "model.safetensors"
    if not tuned.exists():
        raise CheckpointError(f"{tuned} is missing: this installation has no bundled mini model. Install it again.")
    sources = str(bundled.PAIRS / "*.source.png")
    out = config.output
    made = base.run(
        BaseConfig(
            config_path=bundled.TUNED / "config.yaml", save_path=out / "exact_base.ckpt", tuned_model_path=tuned
        ),
        progress,
    )
    extracted = extract.run(
        ExtractConfig(
            base_model_path=made.base.safetensors,
            tuned_model_path=tuned,
            save_to=out / "relight_lora.safetensors",
            rank=config.rank,
            conv_rank=config.conv_rank,
        ),
        progress,
    )
    validated = validate.run(
        ValidateConfig(
            base_model_path=made.base.safetensors,
            tuned_model_path=tuned,
            lora_path=extracted.adapter,
            images=sources,
            report=out / "report",
        ),
        progress,
    )
    translated = infer.run(
        InferConfig(
            base_model_path=made.base.safetensors,
            tuned_model_path=tuned,
            lora_path=(extracted.adapter,),
            source_image=sources,
            output_path=str(out / "pictures"),
            compare=True,
        ),
        progress,
    )
    return DemoResult(base=made, extract=extracted, validate=validated, infer=translated)
