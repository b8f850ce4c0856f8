"""Sizes that LBM works in.

An image is stretched to the (width, height) nearest to it in width / height, of eleven of about one megapixel: those of
the inference of gojasper/LBM. The result is stretched back. A model made for another pixel budget gets the same
buckets, scaled. The table is in `model/bridge_pipeline.py`, which stands alone.
"""

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lbm_lora.choices import SMALLEST_SIZE
from lbm_lora.errors import ConfigError, Option
from lbm_lora.imaging.tensors import to_tensor
from lbm_lora.progress import warn

FULL_SIZE = 1024
"""The square root of the pixel budget that the buckets are given for."""


def nearest_bucket(width: int, height: int, size: int = FULL_SIZE, *, step: int = 8) -> tuple[int, int]:
    """Return the (width, height) that an image is stretched to.

    Args:
        size: square root of the pixel budget; at 1024 the buckets are LBM's own.
        step: sides are multiples of it; the down-scaling factor of the VAE.
    """
    from lbm_lora.model.bridge_pipeline import nearest_bucket as nearest  # diffusers takes seconds

    if size < SMALLEST_SIZE:
        raise ConfigError(f"size {size} is too small for the buckets. Use {SMALLEST_SIZE} or more.")
    return nearest(width, height, size, step=step)


def warn_of_size(size: int | None, made_for: int) -> None:
    """Warn of a pixel budget far from the model's: below a quarter of it, where LBM's training ends, or above twice."""
    if size is not None and not made_for <= 4 * size <= 8 * made_for:
        warn(
            Option("size"),
            f" {size} is far from the {made_for} that the model is made for, and images may degrade. Omit it, "
            f"or stay between {max(SMALLEST_SIZE, made_for // 4)} and {2 * made_for}.",
        )


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image stretched to (width, height) with a windowed sinc, which does not alias when it shrinks."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def to_bucket(image: Image.Image, size: int, *, step: int) -> Float[Tensor, "1 3 height width"]:
    """An image stretched to the nearest bucket, as a batch of one with values in [-1, 1]; see `nearest_bucket`."""
    return to_tensor([resized(image, nearest_bucket(image.width, image.height, size, step=step))])
