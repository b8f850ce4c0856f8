"""Photos stretched as `infer` does it, without its rounding."""

import numpy as np
import torch
from PIL import Image

from lbm_lora.imaging.tensors import stretched


def test_stretching_is_that_of_pillow_without_its_rounding() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    values = torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
    expected = np.array(image.resize((72, 24), Image.Resampling.LANCZOS))
    made = stretched(values, (72, 24)).movedim(0, -1) * 255
    assert np.abs(made.numpy() - expected).max() <= 1
    assert stretched(values, (48, 40)) is values
