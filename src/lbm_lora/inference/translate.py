"""Translate one image through a model with its LoRAs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from lbm_lora.apply import ScaledAdapter, fuse_module, inject
from lbm_lora.model.pipeline import LBMPipeline

_TILED = {"auto": None, "on": True, "off": False}


@dataclass(frozen=True, kw_only=True)
class TranslateSettings:
    """Settings for translating images."""

    steps: int = 1
    seed: int = 0
    size: int | None = None
    keep_detail: float = 0.0
    match_color: float = 0.0
    sample_posterior: bool = False
    vae_tiling: Literal["auto", "on", "off"] = "auto"


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
    pipe.tiled = _TILED[settings.vae_tiling]
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


def put_in(pipe: LBMPipeline, adapters: Sequence[ScaledAdapter], mode: Literal["fused", "live"]) -> None:
    """Put the adapters into the unet permanently: the original weights are not kept."""
    if mode == "fused":
        fuse_module(pipe.unet, adapters)
    else:
        inject(pipe.unet, adapters)
