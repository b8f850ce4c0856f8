"""Load a base with LoRAs from a command's options, for images and for shards."""

from collections.abc import Sequence
from pathlib import Path

from lbm_lora.adapter import Adapter
from lbm_lora.apply import AppliedAdapter, ScaledAdapter, fitting_adapters, fuse_module, inject
from lbm_lora.checkpoint import Checkpoint
from lbm_lora.configs.model_options import ModelOptions
from lbm_lora.inference.translate import TranslateSettings
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.progress import Progress

_TILED: dict[str, bool | None] = {"auto": None, "on": True, "off": False}


def translate_settings(options: ModelOptions) -> TranslateSettings:
    """Return the settings for translating every image."""
    return TranslateSettings(
        steps=options.num_inference_steps,
        seed=options.seed,
        size=options.size,
        keep_detail=options.keep_detail,
        match_color=options.match_color,
        sample_posterior=options.sample_posterior,
        tiled=_TILED[options.vae_tiling],
    )


def read_adapters(
    options: ModelOptions, checkpoint: Checkpoint, progress: Progress, loras: Sequence[Path | Adapter] | None = None
) -> tuple[list[ScaledAdapter], tuple[AppliedAdapter, ...]]:
    """Return the LoRAs, or given replacements, checked against the base; see `fitting_adapters`."""
    return fitting_adapters(
        checkpoint.component(),
        options.lora_path if loras is None else loras,
        options.lora_scale,
        alpha_is=options.lora_alpha_is,
        crop=options.crop,
        attention_only=options.attention_only,
        allow_other_base=options.allow_other_base,
        allow_unmatched=options.allow_unmatched,
        progress=progress,
    )


def put_in(options: ModelOptions, pipe: LBMPipeline, adapters: Sequence[ScaledAdapter]) -> None:
    """Put the adapters into the unet permanently: the original weights are not kept."""
    if options.mode == "fused":
        fuse_module(pipe.unet, adapters)
    else:
        inject(pipe.unet, adapters)
