"""PSNR and SSIM of float images, whole and inside a mask, against independent formulas."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from lbm_lora.errors import ImageError
from lbm_lora.imaging.metrics import psnr, ssim


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """An image and a noisy copy, 3x40x48, values in [-1, 1]."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.rand(3, 40, 48, generator=generator) * 2 - 1
    return clean, (clean + 0.1 * torch.randn(3, 40, 48, generator=generator)).clamp(-1, 1)


def test_psnr_of_a_known_difference() -> None:
    one = torch.zeros(3, 12, 12)
    assert psnr(one, one + 0.2) == pytest.approx(20.0, abs=1e-4)


def test_ssim_is_that_of_skimage(pair: tuple[Tensor, Tensor]) -> None:
    one, other = pair
    reference = structural_similarity(
        one.numpy().astype(np.float64),
        other.numpy().astype(np.float64),
        data_range=2.0,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(one, other) == pytest.approx(reference, abs=1e-9)
    assert ssim(one, other) < 0.999


def test_bf16_images_are_measured_precisely(pair: tuple[Tensor, Tensor]) -> None:
    one, other = (image.bfloat16() for image in pair)
    assert psnr(one, other) == pytest.approx(psnr(one.float(), other.float()), abs=1e-9)
    assert ssim(one, other) == pytest.approx(ssim(one.float(), other.float()), abs=1e-9)


def test_a_mask_leaves_the_rest_out(pair: tuple[Tensor, Tensor]) -> None:
    one, other = pair
    mask = torch.zeros(40, 48)
    mask[:, :20] = 1
    spoiled = other.clone()
    spoiled[:, :, 30:] = -one[:, :, 30:]
    assert psnr(one, spoiled, mask) == psnr(one, other, mask) == pytest.approx(psnr(one[..., :20], other[..., :20]))
    assert ssim(one, spoiled, mask) == pytest.approx(ssim(one, other, mask))
    assert psnr(one, spoiled) < psnr(one, other) - 5
    assert psnr(one, torch.where(mask.bool(), one, other), mask) == math.inf


def test_what_cannot_be_measured_is_said() -> None:
    image = torch.zeros(3, 12, 12)
    with pytest.raises(ImageError, match="the mask is zero everywhere"):
        psnr(image, image, torch.zeros(12, 12))
    with pytest.raises(ImageError, match=r"SSIM needs 11x11 pixels or more, not 12x8\."):
        ssim(image[:, :8], image[:, :8])
