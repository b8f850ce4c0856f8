"""Which programs read a LoRA file as it is, and what to convert it to for the others.

Measured with the programs themselves (tests/interop, docs/files.md): ComfyUI's stock loader on a model that holds an
LBM, diffusers' `load_lora_adapter`, PEFT's `from_pretrained`, LyCORIS' `create_lycoris_from_weights` and `merge`.
"""

import torch

from lbm_lora.adapter import Adapter
from lbm_lora.configs.values import FormatName
from lbm_lora.errors import plural
from lbm_lora.report.inspection.adapter_values import Reader

_COMFYUI: tuple[FormatName, ...] = ("comfyui", "kohya-diffusers")
_DIFFUSERS: tuple[FormatName, ...] = ("diffusers", "kohya", "kohya-diffusers")
_LYCORIS: tuple[FormatName, ...] = ("lycoris", "kohya-diffusers")


def readers_of(adapter: Adapter) -> tuple[Reader, ...]:
    """Return what each program makes of an adapter's file, in the format that it was read from."""
    return (Reader(name="lbm-lora", reads="all", note=""), *(_reader(adapter, name) for name in _PROGRAMS))


def _comfyui(adapter: Adapter) -> Reader:
    if adapter.file_format in _COMFYUI:
        return _read("ComfyUI")
    return _not_read("ComfyUI", "it ignores the keys: the base's image, with warnings in the log", "comfyui")


def _diffusers(adapter: Adapter) -> Reader:
    if adapter.file_format not in _DIFFUSERS:
        return _not_read("diffusers", "load_lora_adapter finds no keys of its own", "diffusers")
    if adapter.file_format != "diffusers":
        if adapter.dense:
            return _not_read("diffusers", f"its SDXL converter stops at {_dense(adapter)}", "diffusers")
        return _read("diffusers", "through its SDXL converter, from 0.39")
    if adapter.dense:
        return Reader(name="diffusers", reads="part", note=f"it ignores {_dense(adapter)}", convert_to="peft")
    ranks = {module.rank for module in adapter.modules.values()}
    # reading takes padding away, so the ranks in the file may be equal
    return _read("diffusers", "before 0.40 only if padded to one rank" if len(ranks) > 1 else "")


def _peft(adapter: Adapter) -> Reader:
    if adapter.file_format == "peft":
        return _read("PEFT")
    return _not_read("PEFT", "it needs adapter_config.json and keys under base_model.model.", "peft")


def _lycoris(adapter: Adapter) -> Reader:
    if adapter.file_format == "lycoris":
        return _read("LyCORIS")
    if adapter.file_format in _LYCORIS:
        return _read("LyCORIS", "through lycoris.utils.merge")
    return _not_read("LyCORIS", "no layer matches", "lycoris")


_PROGRAMS = {"ComfyUI": _comfyui, "diffusers": _diffusers, "PEFT": _peft, "LyCORIS": _lycoris}


def _reader(adapter: Adapter, name: str) -> Reader:
    found = _PROGRAMS[name](adapter)
    if adapter.dtype == torch.int8:
        return _not_read(name, "it does not know factors in 8 bits", found.convert_to)
    return found


def _read(name: str, note: str = "") -> Reader:
    return Reader(name=name, reads="all", note=note)


def _not_read(name: str, note: str, convert_to: str) -> Reader:
    return Reader(name=name, reads="nothing", note=note, convert_to=convert_to)


def _dense(adapter: Adapter) -> str:
    return plural(len(adapter.dense), "dense delta")
