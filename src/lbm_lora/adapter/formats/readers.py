"""Who reads a format as it is, and how: for the output of `convert` and `inspect`; docs/files.md has the same table.

Measured with the programs themselves: diffusers, PEFT and LyCORIS in tests/interop, ComfyUI's stock loader on a model
that holds an LBM, whose modules have diffusers' names. There it takes no file with SDXL's single-file names (kohya).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lbm_lora.choices import FormatName

Program = Literal["lbm-lora", "ComfyUI", "diffusers", "PEFT", "LyCORIS"]


@dataclass(frozen=True)
class Reader:
    """A program that reads a format.

    Attributes:
        note: which versions, or through what; empty if it simply does.
    """

    program: Program
    call: str
    note: str = ""


_COMFYUI = Reader("ComfyUI", "LoraLoaderModelOnly, on a model that holds an LBM")
_CONVERTER = Reader(
    "diffusers",
    "StableDiffusionXLLoraLoaderMixin.lora_state_dict, then unet.load_lora_adapter",
    "through its SDXL converter, from 0.39",
)
READERS: Mapping[FormatName, tuple[Reader, ...]] = {
    "native": (Reader("lbm-lora", "every command, and Python"),),
    "comfyui": (_COMFYUI,),
    "kohya": (_CONVERTER,),
    "kohya-diffusers": (
        _COMFYUI,
        _CONVERTER,
        Reader("LyCORIS", "lycoris.utils.merge", "through lycoris.utils.merge"),
    ),
    "diffusers": (Reader("diffusers", 'unet.load_lora_adapter(FILE, prefix="unet")'),),
    "peft": (Reader("PEFT", "PeftModel.from_pretrained(unet, FOLDER)"),),
    "lycoris": (Reader("LyCORIS", "create_lycoris_from_weights(1.0, FILE, unet)"),),
}
"""The programs that read each format; lbm-lora reads them all."""


def calls_of(format: FormatName) -> str:
    """Return who reads a format and with what: `ComfyUI: LoraLoaderModelOnly; diffusers: ...`."""
    return "; ".join(f"{reader.program}: {reader.call}" for reader in READERS[format])
