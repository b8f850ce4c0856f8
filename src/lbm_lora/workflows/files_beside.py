"""Files next to a LoRA that belong to it: its sidecar, and its twins in formats of other programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lbm_lora.adapter.adapter_file import files_of
from lbm_lora.configs.values import ForeignFormat, FormatName
from lbm_lora.errors import Option, OutputError, with_name
from lbm_lora.extraction import sidecar_of
from lbm_lora.files import current, is_ours
from lbm_lora.progress import warn


def check_form(path: Path, to: FormatName = "native") -> None:
    """Refuse a path that is not that of a format.

    Raises:
        OutputError: a folder for a file, or a file for a folder.
    """
    is_file = path.suffix == ".safetensors"
    if to == "peft" and (is_file or path.is_file()):
        raise OutputError(Option("save_to"), f" {path}: an adapter of PEFT is a folder.")
    if to != "peft" and not is_file:
        raise OutputError(Option("save_to"), f" {path}: a LoRA is a .safetensors file.")


def twin_path(lora: Path, to: ForeignFormat) -> Path:
    """Return the path of a twin: `x.comfyui.safetensors` for `x.safetensors`, the folder `x.peft`."""
    return lora.with_name(f"{lora.stem}.{to}{'' if to == 'peft' else lora.suffix}")


def twins_of(lora: Path, also: Sequence[ForeignFormat]) -> dict[ForeignFormat, Path]:
    """Return format -> path of a LoRA's twins; a format that is given twice counts once."""
    return {to: twin_path(lora, to) for to in also}


def warn_of_others(lora: Path, also: Sequence[ForeignFormat] = ()) -> None:
    """Warn about the sidecar and the twins of an earlier LoRA at a path, which do not belong to the new one.

    Args:
        also: formats of the twins that the new one gets.
    """
    lora = with_name(lora)
    others = twins_of(lora, [to for to in get_args(ForeignFormat) if to not in also])
    # x.peft has no sidecar: x_config.yaml belongs to x.safetensors
    sidecar = [sidecar_of(lora)] if lora.suffix == ".safetensors" else []
    for path in (*sidecar, *(files_of(path, to)[0] for to, path in others.items())):
        is_new = current(path) != path or lora in (path, path.parent)  # about to be replaced, or the LoRA itself
        if is_ours(path) and not is_new:
            warn(f"{path} belongs to an earlier {lora.name}. Remove it.")
