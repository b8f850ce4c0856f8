"""Images as tensors in [-1, 1] and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from lbm_lora.errors import ImageError
from lbm_lora.imaging.tensors import mask_to_tensor, to_images, to_tensor


def test_every_byte_comes_back() -> None:
    array = np.arange(256 * 3, dtype=np.int64).reshape(16, 16, 3) % 256
    image = Image.fromarray(array.astype(np.uint8))
    tensor = to_tensor([image, image.rotate(180)])
    assert tensor.shape == (2, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    back = to_images(tensor)
    assert np.array_equal(np.asarray(back[0]), array)
    assert np.array_equal(np.asarray(back[1]), np.asarray(image.rotate(180)))


def test_channels_and_axes_keep_their_places() -> None:
    image = Image.new("RGB", (3, 2), (255, 0, 0))
    image.putpixel((2, 1), (0, 0, 255))
    tensor = to_tensor([image])[0]
    assert tensor[:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert tensor[:, 1, 2].tolist() == [-1.0, -1.0, 1.0]


def test_values_outside_are_clamped() -> None:
    tensor = torch.tensor([-3.0, 1.5, 0.0]).reshape(1, 3, 1, 1)
    assert to_images(tensor)[0].getpixel((0, 0)) == (0, 255, 128)
    assert to_images(tensor.bfloat16())[0].getpixel((0, 0)) == (0, 255, 128)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_none_are_refused(value: float) -> None:
    tensor = torch.zeros(1, 3, 2, 2)
    tensor[0, 1, 0, 1] = value
    with pytest.raises(ImageError, match=r"^1 of 12 values are NaN or infinite, so this is not an image\.$"):
        to_images(tensor)


def test_masks_are_weights() -> None:
    mask = Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8))
    assert torch.allclose(mask_to_tensor(mask), torch.tensor([[0.0, 0.2, 1.0]]))
