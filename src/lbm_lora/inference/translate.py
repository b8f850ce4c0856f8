"""Translate images by the options of a command: the model with its LoRAs, and one image through it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lbm_lora.adapter import Adapter
from lbm_lora.apply import AppliedAdapter, ScaledAdapter, fitting_adapters, fuse_module, inject
from lbm_lora.checkpoint import Checkpoint
from lbm_lora.configs.model_options import ModelOptions
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.progress import Progress

_TILED: dict[str, bool | None] = {"auto": None, "on": True, "off": False}


@dataclass(frozen=True, kw_only=True)
class TranslateSettings:
    """Settings for translating images."""

    steps: int = 1
    seed: int = 0
    size: int | None = None
    keep_detail: float = 0.0
    match_color: float = 0.0
    sample_posterior: bool = False
    tiled: bool | None = None


def translate_image(
    pipe: LBMPipeline,
    image: Image.Image,
    settings: TranslateSettings,
    *,
    mask: Image.Image | None = None,
) -> Image.Image:
    """Translate one image; the result has its size. The pipeline's own progress bar is switched off.

    Args:
        image: in mode `RGB`, of any size.
        mask: in mode `L`, of the image's size: where it is black, the source is kept.
    """
    pipe.set_progress_bar_config(disable=True)
    pipe.tiled = settings.tiled
    return pipe(
        image,
        mask=mask,
        num_inference_steps=settings.steps,
        seed=settings.seed,
        size=settings.size,
        keep_detail=settings.keep_detail,
        match_color=settings.match_color,
        sample_posterior=settings.sample_posterior,
    ).images[0]


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
