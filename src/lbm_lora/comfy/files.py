"""Files by the names that ComfyUI's lists show, paths for new ones, and ComfyUI's values in the terms of lbm-lora."""

import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lbm_lora.errors import OutputError

Kind = Literal["diffusion_models", "loras"]

_KINDS: Mapping[str, Kind] = {**dict.fromkeys(("base", "tuned", "checkpoint"), "diffusion_models"), "lora": "loras"}
"""Widget that names a file -> list that it is of."""


def names(kind: Kind) -> list[str]:
    """Return the files of a kind, as ComfyUI lists them."""
    import folder_paths  # pyright: ignore[reportMissingImports]

    return folder_paths.get_filename_list(kind)


def path_of(kind: Kind, name: str) -> Path:
    """Return the path of a file in a list."""
    import folder_paths  # pyright: ignore[reportMissingImports]

    return Path(folder_paths.get_full_path_or_raise(kind, name))


def stamps(inputs: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return what changes when a node must run again: the values of its widgets, and the files that they name."""
    found: list[tuple[Any, ...]] = []
    for name, value in sorted(inputs.items()):
        path = None
        if name in _KINDS and isinstance(value, str):
            path = path_of(_KINDS[name], value)
        elif name == "calibration" and value and value.strip():
            path = typed_path(value)
        status = path.stat() if path is not None and path.is_file() else None
        found.append((name, str(value), status and (status.st_size, status.st_mtime_ns)))
    return found


def new_path(prefix: str, suffix: str = ".safetensors") -> Path:
    """Return a path in ComfyUI's output folder with the next free number: `loras/relight` gives relight_00001_.

    Args:
        suffix: of the file; empty for a folder.
    """
    start = output_path(prefix)
    paths = (start.with_name(f"{start.name}_{number:05}_{suffix}") for number in count(1))
    return next(path for path in paths if not os.path.lexists(path))


def output_path(name: str) -> Path:
    """Return the path of a file in ComfyUI's output folder, which is made."""
    root = _output().resolve()
    path = root / name.strip()
    path = path.parent.resolve() / path.name  # a link at the name itself is kept
    if not name.strip() or path.name in ("", "..") or path == root or not path.is_relative_to(root):
        raise OutputError(f"'{name}' is not a name in ComfyUI's output folder. Give one such as loras/relight.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def typed_path(text: str) -> Path:
    """Return the path that a user typed: absolute, or in ComfyUI's output folder."""
    path = Path(text.strip()).expanduser()
    return path if path.is_absolute() else _output() / path


def _output() -> Path:
    import folder_paths  # pyright: ignore[reportMissingImports]

    return Path(folder_paths.get_output_directory())


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
