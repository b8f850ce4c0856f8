"""Images as tensors in [-1, 1] and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from lbm_lora.errors import ImageError
from lbm_lora.imaging.tensors import stretched, to_images, to_tensor


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_none_are_refused(value: float) -> None:
    tensor = torch.zeros(1, 3, 2, 2)
    tensor[0, 1, 0, 1] = value
    with pytest.raises(ImageError, match=r"^1 of 12 values are NaN or infinite, so this is not an image\.$"):
        to_images(tensor)


def test_stretching_is_that_of_pillow_without_its_rounding() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    values = torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
    expected = np.array(image.resize((72, 24), Image.Resampling.LANCZOS))
    made = stretched(values, (72, 24)).movedim(0, -1) * 255
    assert np.abs(made.numpy() - expected).max() <= 1
    assert stretched(values, (48, 40)) is values
