"""ComfyUI's values in the terms of lbm-lora, and back."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def as_photos(batch: Float[Tensor, "batch height width channels"]) -> list[Image.Image]:
    """Return the images of a batch with values in [0, 1], rounded to 8 bits."""
    values = (batch[..., :3].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(one.numpy()) for one in values]


def as_batch(images: Sequence[Image.Image]) -> Float[Tensor, "batch height width 3"]:
    """Return images of one size as a batch with values in [0, 1]."""
    return torch.from_numpy(np.stack([np.array(image.convert("RGB"), dtype=np.float32) for image in images])) / 255


def device() -> str:
    """Return ComfyUI's device if it is the CPU or one of CUDA, else the CPU; its idle models make room."""
    import comfy.model_management as management  # pyright: ignore[reportMissingImports]

    name = str(management.get_torch_device())
    if not name.startswith("cuda"):
        return "cpu"
    management.unload_all_models()
    return name
