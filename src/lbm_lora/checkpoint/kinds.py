"""What a file of tensors is, by its keys: the kinds that are taken for each other, and who writes them.

The names are those that the writers use (sd-scripts, LyCORIS, PEFT, diffusers, ComfyUI, FastVideo, LBM, SDXL). What can
be read as a LoRA has the role `lora`; `foreign` ones are known so that they can be named.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from lbm_lora.naming import DENOISER_PREFIX

STATISTICS_KEY = "lbm_lora_statistics"
"""The entry in the header of a file of `lbm-lora calibrate`."""
_ADAPTER_KEY = "lbm_lora_format"

_LYCORIS = {".hada_w": "LoHa", ".lokr_w": "LoKr", ".lora_mid.": "LoCon with Tucker factors"}
_UNREAD = {
    ".oft_": "an OFT or BOFT file, which turns weights by a rotation",
    ".on_input": "an IA3 file, which scales inputs or outputs",
    ".ia3_l": "an IA3 file, which scales inputs or outputs",
    ".vera_lambda_": "a VeRA file, whose factors are random numbers that it does not hold",
    "unet:0:": "a LoRA in the format of cloneofsimo's lora, which names no layers",
}
"""Part of a key -> an algorithm or format whose deltas need the base, or that cannot be assigned to layers."""
_FACTORS = (".lora_up.", ".lora_down.", ".lora_unit", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.", "_lora.down.")
_DENSE = (".diff", ".diff_b", ".diff_param", ".dense", ".dense_b", ".dense_param")
"""Endings of dense deltas: a LoRA need not have factors."""
_VAE = ("vae.", "first_stage_model.", "encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_DORA = (".dora_scale", ".lora_magnitude_vector")


@dataclass(frozen=True)
class FileKind:
    """A kind of file, recognised by the names of its tensors.

    Attributes:
        name: with its article, for a sentence: `a PEFT adapter`.
        role: the use that it has. `foreign` is a LoRA that cannot be read.
    """

    name: str
    role: Literal["lora", "foreign", "statistics", "network"]


NATIVE = FileKind("a LoRA", "lora")
_STATISTICS = FileKind("a file of calibration statistics", "statistics")


def kind_of(keys: Collection[str], metadata: Mapping[str, str]) -> FileKind | None:
    """The kind of a file with these keys; None if it is unknown."""
    if STATISTICS_KEY in metadata:
        return _STATISTICS
    if _ADAPTER_KEY in metadata:
        return NATIVE
    is_lora = _has(keys, _FACTORS) or any(key.endswith(_DENSE) for key in keys)
    return _foreign(keys) or (NATIVE if is_lora else _network(keys))


def _foreign(keys: Collection[str]) -> FileKind | None:
    unread = next((name for part, name in _UNREAD.items() if _has(keys, (part,))), "")
    if _starts(keys, "lycoris_", "lora_unet_") and _has(keys, (".a1.weight",)):
        unread = "a GLoRA file, which scales and shifts weights"
    if unread:
        return FileKind(unread, "foreign")
    algorithm = next((name for part, name in _LYCORIS.items() if _has(keys, (part,))), "")
    if algorithm or _starts(keys, "lycoris_"):
        return FileKind(f"a LyCORIS file{f' ({algorithm})' if algorithm else ''}", "lora")
    if _starts(keys, "lora_unet_", "lora_te"):
        return FileKind("a LoRA in the format of kohya's sd-scripts", "lora")
    if not _has(keys, _FACTORS):
        return None
    if _starts(keys, "diffusion_model."):
        return FileKind("a LoRA in ComfyUI's format", "lora")
    if _starts(keys, "base_model.model."):
        return FileKind("a PEFT adapter", "lora")
    if _starts(keys, "unet.", "text_encoder", "transformer."):
        return FileKind("a LoRA in the format of diffusers", "lora")
    if _has(keys, _DORA):
        return FileKind("a DoRA", "lora")
    if _has(keys, (".lora_A.", ".lora.down.")):
        return FileKind("a LoRA with the keys of PEFT or FastVideo", "lora")
    return None


def _network(keys: Collection[str]) -> FileKind | None:
    if _starts(keys, "model.diffusion_model."):
        return FileKind("a single-file Stable Diffusion checkpoint", "network")
    if _starts(keys, DENOISER_PREFIX):
        return FileKind("an LBM checkpoint", "network")
    if keys and all(key.startswith(_VAE) for key in keys) and _has(keys, ("decoder.",)):
        return FileKind("a VAE alone", "network")
    if "conv_in.weight" in keys and _starts(keys, "down_blocks."):
        return FileKind("a UNet of diffusers alone", "network")
    return None


def _starts(keys: Collection[str], *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in keys)


def _has(keys: Collection[str], parts: tuple[str, ...]) -> bool:
    return any(part in key for key in keys for part in parts)
