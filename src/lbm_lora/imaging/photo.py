"""Operations on photos in [0, 1] that keep their depth: stretching, the source's detail and colours."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

Photo = Float[Tensor, "channels height width"]

_LUMA = (0.2126, 0.7152, 0.0722)
_DETAIL = 1 / 100
"""Standard deviation of the blur that separates light from detail, as a share of the shorter side."""


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


def keep_detail(result: Photo, source: Photo, share: float) -> Photo:
    """Return a result with the fine structure of its source: what differs from the local mean of the brightness.

    Args:
        share: 0 is the result as it is, 1 the source's detail in place of the result's.
    """
    if not share:
        return result
    radius = max(1.0, _DETAIL * min(source.shape[-2:]))
    light, light_before = _luma(result), _luma(source)
    detail = (light_before - _blurred(light_before, radius)) - (light - _blurred(light, radius))
    return (result + share * detail).clamp(0, 1)


def match_color(result: Photo, source: Photo, share: float) -> Photo:
    """Return a result whose channels have the mean and the spread of the source's.

    Args:
        share: 0 is the result as it is, 1 the source's mean and standard deviation.
    """
    if not share:
        return result
    mean, spread = result.mean((-2, -1), keepdim=True), result.std((-2, -1), keepdim=True)
    mean_before, spread_before = source.mean((-2, -1), keepdim=True), source.std((-2, -1), keepdim=True)
    matched = (result - mean) * (spread_before / spread.clamp(min=1e-6)) + mean_before
    return torch.lerp(result, matched, share).clamp(0, 1)


def _resized(photo: Photo, size: tuple[int, int]) -> Float[Tensor, "channels rows columns"]:
    planes = [Image.fromarray(plane.numpy()).resize(size, Image.Resampling.LANCZOS) for plane in photo]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1)


def _luma(photo: Photo) -> Float[Tensor, "1 height width"]:
    weights = torch.tensor(_LUMA, dtype=photo.dtype, device=photo.device)
    return (weights[:, None, None] * photo).sum(0, keepdim=True)


def _blurred(plane: Float[Tensor, "1 height width"], radius: float) -> Float[Tensor, "1 height width"]:
    """Gaussian blur with the edges repeated."""
    reach = min(round(3 * radius), *(side - 1 for side in plane.shape[-2:]))
    places = torch.arange(-reach, reach + 1, dtype=plane.dtype, device=plane.device)
    kernel = torch.exp(-0.5 * (places / radius) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(plane[None], (reach, reach, reach, reach), mode="replicate")
    rows = functional.conv2d(padded, kernel[None, None, None, :])
    return functional.conv2d(rows, kernel[None, None, :, None])[0]
