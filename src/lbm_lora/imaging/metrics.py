"""Similarity of two images: PSNR and SSIM of float values in [-1, 1], complete or inside a mask.

Computed in fp64 on the CPU, so that the number does not depend on the device.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.errors import ImageError

RANGE = 2.0
"""Distance from black to white."""

_WINDOW = 11
"""Side of SSIM's window, pixels."""

_MARGIN = _WINDOW // 2

ImageTensor = Float[Tensor, "3 height width"]
Weights = Float[Tensor, "height width"]


def psnr(one: ImageTensor, other: ImageTensor, mask: Weights | None = None) -> float:
    """Peak signal-to-noise ratio, dB: 10 log10(range^2 / mean squared error). Infinite for equal images."""
    squared = (_precise(one) - _precise(other)).square().mean(dim=0)
    error = _mean(squared, mask)
    return math.inf if error == 0 else 10 * math.log10(RANGE**2 / error)


def ssim(one: ImageTensor, other: ImageTensor, mask: Weights | None = None) -> float:
    """Structural similarity (Wang et al., IEEE TIP 2004), mean over the channels: 1 for equal images.

    Gaussian windows of 11x11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03; only windows that lie inside the
    image count. With a mask, the windows are weighted by the mask at their centres.
    """
    if min(one.shape[-2:]) < _WINDOW:
        size = f"{one.shape[-1]}x{one.shape[-2]}"
        raise ImageError(f"SSIM needs {_WINDOW}x{_WINDOW} pixels or more, not {size}.")
    # imported here: it takes seconds, and only reports need it
    from torchmetrics.functional.image import structural_similarity_index_measure

    images = _precise(one)[None], _precise(other)[None]
    _, similarity = structural_similarity_index_measure(
        *images, sigma=1.5, kernel_size=_WINDOW, data_range=RANGE, return_full_image=True
    )
    inside = (..., slice(_MARGIN, -_MARGIN), slice(_MARGIN, -_MARGIN))
    return _mean(similarity[0].mean(dim=0)[inside], None if mask is None else mask[inside])


def _precise(image: Tensor) -> Tensor:
    return image.detach().cpu().to(torch.float64)


def _mean(values: Float[Tensor, "height width"], mask: Weights | None) -> float:
    if mask is None:
        return float(values.mean())
    weights = _precise(mask)
    if float(weights.sum()) == 0:
        raise ImageError("the mask is zero everywhere, so nothing can be measured inside it.")
    return float((values * weights).sum() / weights.sum())
