"""LoRAs of diffusers: `unet.` and PEFT's keys; read also without the prefix, and as they were before PEFT.

    unet.<module>.lora_A.weight, .lora_B.weight   written with alpha = rank, and one rank (see `layers`)
    unet.<module>.lora_B.bias                     on request; diffusers cannot fuse these

The header's `lora_adapter_metadata` says the same to newer versions; when read, its ranks and alphas count. Parts that
an LBM lacks, such as text encoders, are left out with a note.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

from lbm_lora.adapter.formats.codec import Codec, Decoded, Encoded, Source, Wishes, check_held
from lbm_lora.adapter.formats.layers import KEY, Before, as_before, dense_kinds, layer_tensors, notes_of, to_one_rank
from lbm_lora.adapter.formats.lora_config import LoraConfig, config_fields, config_of
from lbm_lora.adapter.formats.peft_keys import decode_layers, is_factor
from lbm_lora.adapter.formats.reading import is_of_another_part, note_left_out
from lbm_lora.adapter.module import Adapter
from lbm_lora.errors import AdapterError
from lbm_lora.naming import DENOISER_PREFIX, bias_of
from lbm_lora.text import TextError, parse_json

PREFIX = "unet."
CONFIG_KEY = "lora_adapter_metadata"
_TRANSFORMER = "transformer."


def _matches(keys: Collection[str], header: Mapping[str, str]) -> bool:
    return any(map(is_factor, keys))


def _decode(source: Source) -> Decoded:
    if any(key.startswith(_TRANSFORMER) for key in source.tensors):
        raise AdapterError(f"{source.path} is a LoRA for a diffusion transformer. An LBM's denoiser is a UNet.")
    left_out = [key for key in source.tensors if is_of_another_part(key)]
    note = note_left_out(left_out, source)
    kept = {key: tensor for key, tensor in source.tensors.items() if key not in left_out}
    prefix = next((p for p in (PREFIX, DENOISER_PREFIX) if all(key.startswith(p) for key in kept)), "")
    tensors = {key.removeprefix(prefix): tensor for key, tensor in kept.items()}
    config = _config(source.header, source.path)
    modules, dense, notes = decode_layers(tensors, config, source)
    component = source.prefix
    before = Before.of_header(source.header)
    if before is not None:
        modules, matrices = as_before(modules, before)
        dense, component = dense | matrices, before.prefix
    return source.adapter(modules, dense, component, (CONFIG_KEY, KEY, "format")), (*notes, *note)


def _config(header: Mapping[str, str], where: Path) -> LoraConfig | None:
    """Return the header's config of the UNet, whose fields have its prefix where a pipeline wrote the file."""
    if CONFIG_KEY not in header:
        return None
    try:
        fields = cast(object, parse_json(header[CONFIG_KEY]))
    except TextError as error:
        raise AdapterError(f"{where}: {CONFIG_KEY} in the header {error}.") from None
    if isinstance(fields, dict) and any(key.startswith(PREFIX) for key in fields):
        fields = {key.removeprefix(PREFIX): value for key, value in fields.items() if key.startswith(PREFIX)}
    return config_of(fields, where)


def _encode(adapter: Adapter, wishes: Wishes) -> Encoded:
    kinds = dense_kinds(adapter.dense)
    layers = to_one_rank(adapter.modules, kinds.matrices, adapter.prefix)
    is_kept = wishes.biases == "lora_bias"
    stray = [name for name in kinds.biases if not is_kept or name not in set(map(bias_of, layers.modules))]
    remedies = {"biases": "drop" if is_kept else "lora_bias|drop", "norms": "drop"}
    check_held(adapter, "diffusers", remedies, biases=stray, norms=kinds.norms, others=kinds.others)
    fields = config_fields(layers.ranks) | ({"lora_bias": True} if kinds.biases else {})
    config = json.dumps({PREFIX + key: value for key, value in fields.items()}, sort_keys=True)
    notes = [
        *notes_of(adapter, layers),
        *(["diffusers before 0.40 needs weight_name= or use_safetensors=True."] if layers.padding is None else []),
        *(["diffusers runs a LoRA with biases, but its fuse_lora() refuses it."] if kinds.biases else []),
    ]
    header = {"format": "pt", CONFIG_KEY: config, KEY: layers.before.encoded()}
    return Encoded(layer_tensors(PREFIX, layers, kinds.biases), header, notes=tuple(notes))


CODEC = Codec("diffusers", _matches, _decode, _encode)
