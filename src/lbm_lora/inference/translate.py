"""Translate one image with a pipeline, by the options of a command."""

from dataclasses import dataclass

from PIL import Image

from lbm_lora.model.pipeline import LBMPipeline


@dataclass(frozen=True, kw_only=True)
class TranslateSettings:
    """Settings for translating images.

    Attributes:
        steps: denoiser calls; a number that leaves the trained timesteps gives a warning.
        seed: seed for the noise between steps, and for the posterior if it is sampled.
        size: square root of the pixel budget; by default the model's own.
        keep_detail: share of the source's fine detail in the result, 0 to 1.
        match_color: share by which colours move to the mean and spread of the source's, 0 to 1.
        sample_posterior: sample the VAE's posterior as LBM's own inference does, instead of taking its mean.
        tiled: decode in tiles; by default if the image is larger than the model's tile.
    """

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
        pipe: pipeline, with or without LoRAs.
        image: image in mode `RGB`, of any size.
        mask: mask in mode `L`, of the image's size: where it is black, the source is kept.

    Raises:
        ConfigError: `steps` is below 1, or `size` below 64.
        ImageError: the result holds NaN or infinite values.
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
