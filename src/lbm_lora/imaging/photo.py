"""Photos as values in [0, 1], stretched without losing their depth."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

Photo = Float[Tensor, "channels height width"]


def stretched(photo: Photo, size: tuple[int, int]) -> Float[Tensor, "channels rows columns"]:
    """Return a photo in another size (width, height), by the filter of `infer` (Lanczos) without rounding to 8 bits.

    Returns:
        Values in [0, 1]; the photo itself where it has the size already.
    """
    if (photo.shape[-1], photo.shape[-2]) == size:
        return photo
    width, height = size
    wide = _resized(photo.float().cpu(), (width, photo.shape[-2]))  # as Pillow does it: first along the rows, clipped
    return _resized(wide, (width, height))


def _resized(photo: Photo, size: tuple[int, int]) -> Float[Tensor, "channels rows columns"]:
    planes = [Image.fromarray(plane.numpy()).resize(size, Image.Resampling.LANCZOS) for plane in photo]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1)
