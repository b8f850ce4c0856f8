"""The files of an extraction: what it reads and writes, its own steps included."""

from collections.abc import Sequence
from pathlib import Path

from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.extraction import sidecar_of
from lbm_lora.files import Outputs
from lbm_lora.model.resolve import config_beside
from lbm_lora.ranks import RankRule
from lbm_lora.workflows.files_beside import check_form
from lbm_lora.workflows.twins import plan_twins


def output_paths(config: ExtractConfig, rule: RankRule, images: Sequence[Path]) -> list[Path]:
    """Return the outputs, checked; see `planned`."""
    paths = lora_paths(config.save_to, rule)
    planned(config, paths, images).check()
    return paths


def planned(config: ExtractConfig, paths: Sequence[Path], images: Sequence[Path]) -> Outputs:
    """Return what the command reads and writes.

    Args:
        paths: LoRAs, from `lora_paths`.
        images: all images.
    """
    outputs = Outputs(overwrite=config.overwrite).then(_planned_base(config))
    outputs.reads(config.tuned_model_path, config.config_path, *images)
    if config.calibration_images is not None:
        from lbm_lora.workflows import calibrate

        outputs.then(calibrate.planned(calibration_of(config), images))
    step = Outputs().reads(config.base_model_path, config.statistics)
    for path in paths:
        step.writes(path)
        step.writes(sidecar_of(path), "the sidecar")
    plan_twins(step, paths, config.also)
    return outputs.then(step)


def lora_paths(save_to: Path, rule: RankRule) -> list[Path]:
    """Return a path for each LoRA of a rule: `save_to`, or with the rule's names, `LORA_20MB.safetensors`.

    Raises:
        OutputError: it is not a .safetensors file.
    """
    check_form(save_to)
    return [save_to.with_stem(f"{save_to.stem}_{name}" if name else save_to.stem) for name in rule.names]


def _planned_base(config: ExtractConfig) -> Outputs:
    if not config.create_base_model:
        return Outputs()
    from lbm_lora.workflows.base import planned_missing

    return planned_missing(
        config.base_model_path,
        backbone_signature=config.backbone_signature,
        config_path=base_config(config),
        is_made=True,
    )


def base_config(config: ExtractConfig) -> Path | None:
    """Return the config.yaml of a base that is made."""
    return config.config_path or config_beside(config.tuned_model_path)


def calibration_of(config: ExtractConfig) -> CalibrateConfig:
    """Return how statistics of the given images are measured."""
    assert config.statistics is not None
    return CalibrateConfig(
        tuned_model_path=config.tuned_model_path,
        images=config.calibration_images or (),
        save_to=config.statistics,
        device=config.device,
        config_path=config.config_path,
        overwrite=config.overwrite,
    )
