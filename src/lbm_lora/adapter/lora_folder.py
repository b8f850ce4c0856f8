"""The LoRA in a folder, as PEFT, diffusers and training programs leave it, with other files next to it."""

from pathlib import Path

from lbm_lora.checkpoint import NATIVE, kind_of, open_checkpoint
from lbm_lora.errors import AdapterError, listing

NAMES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
"""Files that PEFT and diffusers look for, in this order."""


def lora_in(folder: Path) -> Path:
    """Return the native LoRA of a folder, since an export may hold less; else the one that PEFT or diffusers looks for.

    A folder with neither is returned itself: it may hold one file of another name.

    Raises:
        AdapterError: it holds several native LoRAs.
        CheckpointError: a file in it is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    native = [file for file in files if _is_native(file)] if len(files) > 1 else []
    if len(native) > 1:
        raise AdapterError(f"{folder} holds several LoRAs: {listing(file.name for file in native)}. Name one.")
    known = [folder / name for name in NAMES if (folder / name).is_file()]
    return next(iter([*native, *known]), folder)


def _is_native(file: Path) -> bool:
    with open_checkpoint(file) as opened:
        return kind_of(opened.specs, opened.metadata) == NATIVE and not any(name == file.name for name in NAMES)
