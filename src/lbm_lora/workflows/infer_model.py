"""From the flags of `infer` to the model and how it is used, for pictures and shards alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lbm_lora.apply import ScaledAdapter, fuse_module, inject
from lbm_lora.checkpoint import Checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.infer.jobs import Settings
from lbm_lora.model.build import LBMModel
from lbm_lora.progress import Progress
from lbm_lora.workflows.adapters import AppliedAdapter, fitting_adapters
from lbm_lora.workflows.base import ensure_base
from lbm_lora.workflows.infer_config import InferConfig

_TILED: dict[str, bool | None] = {"auto": None, "on": True, "off": False}


def base_path(config: InferConfig, progress: Progress) -> Path:
    """The base checkpoint; where it is missing and a backbone is given, it is made there first.

    Raises:
        ConfigError: none is given.
    """
    if config.base_model_path is None:
        raise ConfigError(
            "--base_model_path is missing. Give a base or any LBM checkpoint; `lbm-lora base` makes the exact "
            "base of a backbone."
        )
    if config.backbone_signature is None:
        return config.base_model_path
    return ensure_base(
        config.base_model_path,
        backbone_signature=config.backbone_signature,
        config_path=config.config_path,
        progress=progress,
    )


def read_adapters(
    config: InferConfig, checkpoint: Checkpoint, progress: Progress
) -> tuple[list[ScaledAdapter], tuple[AppliedAdapter, ...]]:
    """The LoRAs, checked against the base; see `fitting_adapters`."""
    return fitting_adapters(
        checkpoint.component(),
        config.lora_path,
        config.lora_scale,
        attention_only=config.attention_only,
        allow_other_base=config.allow_other_base,
        allow_unmatched=config.allow_unmatched,
        progress=progress,
    )


def input_files(config: InferConfig) -> list[Path]:
    """The files of models and LoRAs, which must not be overwritten."""
    models = (config.base_model_path, config.tuned_model_path, config.config_path, *config.lora_path)
    return [path for path in models if path is not None]


def put_in(model: LBMModel, adapters: Sequence[ScaledAdapter], mode: Literal["fused", "live"]) -> None:
    """Put the adapters into the denoiser, for good."""
    if mode == "fused":
        fuse_module(model.denoiser, adapters)
    else:
        inject(model.denoiser, adapters)


def settings_of(config: InferConfig) -> Settings:
    """How every picture is translated."""
    return Settings(
        steps=config.num_inference_steps,
        seed=config.seed,
        size=config.size,
        sample_posterior=config.sample_posterior,
        tiled=_TILED[config.vae_tiling],
    )
