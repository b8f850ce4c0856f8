"""The LoRA in a folder, as PEFT, diffusers and training programs leave it, with other files next to it."""

from pathlib import Path

import xxhash

from lbm_lora.checkpoint import NATIVE, kind_of, open_checkpoint
from lbm_lora.errors import AdapterError, CheckpointError, listing
from lbm_lora.ownership import has_factors_of_peft
from lbm_lora.regular_file import file_digest

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


def lora_digest(path: Path) -> str:
    """Return the digest of what a LoRA is read from: its file and PEFT's configuration next to it, or a folder's files.

    The name of a single file does not count.

    Raises:
        CheckpointError: it is not there any more.
        OSError: a file cannot be read.
    """
    if not path.exists():
        raise CheckpointError(f"{path} was moved or removed while it was in use. Run the command again.")
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix in (".safetensors", ".bin", ".json"))
    else:
        config = path.with_name("adapter_config.json")
        files = [path, *([config] if config.is_file() and has_factors_of_peft(path) else [])]
    held = (f"{'' if one == path else one.name} {file_digest(one)}" for one in files)
    return xxhash.xxh3_128_hexdigest(" ".join(held).encode())


def _is_native(file: Path) -> bool:
    with open_checkpoint(file) as opened:
        return kind_of(opened.specs, opened.metadata) == NATIVE and not any(name == file.name for name in NAMES)
