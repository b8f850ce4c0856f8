"""PIL images <-> tensors of values in [-1, 1], and photos as values in [0, 1]."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lbm_lora.errors import ImageError


def to_tensor(images: Sequence[Image.Image]) -> Float[Tensor, "batch 3 height width"]:
    """Images of mode `RGB` and of one size as fp32 values in [-1, 1]: 0 becomes -1, 255 becomes 1."""
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


class NotFiniteError(ImageError):
    """Some values of an image are NaN or infinite."""


def to_images(tensor: Float[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    """The images of values in [-1, 1]; values outside are clamped, the rest rounded to the nearest of 256."""
    values = tensor.detach().float().cpu()
    broken = int((~torch.isfinite(values)).sum())
    if broken:
        raise NotFiniteError(f"{broken} of {values.numel()} values are NaN or infinite, so this is not an image.")
    bytes_ = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(array) for array in bytes_.permute(0, 2, 3, 1).numpy()]


def mask_to_tensor(mask: Image.Image) -> Float[Tensor, "height width"]:
    """A mask of mode `L` as fp32 weights in [0, 1]."""
    return torch.from_numpy(np.asarray(mask.convert("L"), dtype=np.float32) / 255)


def stretched(
    photo: Float[Tensor, "channels height width"], size: tuple[int, int]
) -> Float[Tensor, "channels rows columns"]:
    """Return a photo in another size (width, height), by the filter of `infer` (Lanczos) without rounding to 8 bits.

    Returns:
        Values in [0, 1]; the photo itself where it has the size already.
    """
    if (photo.shape[-1], photo.shape[-2]) == size:
        return photo
    width, height = size
    values = photo.float().cpu()
    for step in ((width, photo.shape[-2]), (width, height)):  # as Pillow does it: first along the rows, clipped
        planes = [Image.fromarray(plane.numpy()).resize(step, Image.Resampling.LANCZOS) for plane in values]
        values = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1)
    return values
