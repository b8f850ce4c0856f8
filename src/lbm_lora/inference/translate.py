"""Translate an image of any size: stretch it to the model's size, translate, stretch the result back."""

from dataclasses import dataclass

from PIL import Image

from lbm_lora.imaging.buckets import resized, to_bucket
from lbm_lora.imaging.masks import paste_back
from lbm_lora.imaging.tensors import to_images
from lbm_lora.model.build import LBMModel
from lbm_lora.model.pipeline import Images, translate
from lbm_lora.model.schedule import check_steps


@dataclass(frozen=True, kw_only=True)
class TranslateSettings:
    """How images are translated.

    Attributes:
        steps: denoiser calls; a number that leaves the trained timesteps is logged as a warning.
        seed: for the noise between steps, and for the posterior where it is sampled.
        size: square root of the pixel budget; by default the model's own.
        sample_posterior: sample the VAE's posterior as LBM's own inference does, instead of taking its mean.
        tiled: decode in tiles; by default where the image is larger than the model's tile.
    """

    steps: int = 1
    seed: int = 0
    size: int | None = None
    sample_posterior: bool = False
    tiled: bool | None = None


def translate_image(
    model: LBMModel,
    image: Image.Image,
    settings: TranslateSettings | None = None,
    *,
    mask: Image.Image | None = None,
) -> Image.Image:
    """Translate one image; the result has its size.

    Args:
        model: from `load_model`, with or without a LoRA in it.
        image: mode `RGB`, any size.
        mask: mode `L`, the image's size: where it is black, the source is kept.

    Raises:
        ConfigError: `steps` is below 1, or `size` below 64.
        ImageError: the result holds NaN or infinite values.
    """
    settings = settings or TranslateSettings()
    check_steps(model.config, settings.steps)
    source = to_bucket(image, settings.size or model.size, step=model.pixels_per_latent)
    target = translate(
        model,
        source,
        steps=settings.steps,
        seed=settings.seed,
        sample_posterior=settings.sample_posterior,
        tiled=settings.tiled,
    )
    return to_source_size(target, image, mask=mask)


def to_source_size(output: Images, source: Image.Image, *, mask: Image.Image | None = None) -> Image.Image:
    """An output (a batch of one) in the source's size, pasted on the source where there is a mask."""
    result = resized(to_images(output)[0], source.size)
    return result if mask is None else paste_back(source, result, mask)
