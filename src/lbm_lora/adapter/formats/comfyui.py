"""ComfyUI's own keys on a model that holds an LBM: `diffusion_model.` in place of the checkpoint's prefix.

    diffusion_model.<module>.lora_up.weight, .lora_down.weight, .alpha
    diffusion_model.<module>.diff, .diff_b

The stock loader strips `diffusion_model.` from its own names and adds a dense delta as it is; it knows no dense delta
of a parameter that is neither weight nor bias.
"""

from collections.abc import Collection, Mapping

import torch

from lbm_lora.adapter.formats.codec import Codec, Encoded, Parts, Source, Wishes
from lbm_lora.adapter.module import Adapter
from lbm_lora.adapter.native import DIFF_PARAM, decode, dense_key, encode_module
from lbm_lora.errors import AdapterError, listing
from lbm_lora.naming import DENOISER_PREFIX

PREFIX = "diffusion_model."


def _matches(keys: Collection[str], header: Mapping[str, str]) -> bool:
    return any(key.startswith(PREFIX) for key in keys)


def _decode(source: Source) -> Parts:
    modules, dense = decode(source.tensors, PREFIX, source.path)
    return Parts(modules, dense, DENOISER_PREFIX)


def _encode(adapter: Adapter, wishes: Wishes) -> Encoded:
    tensors = {
        key: tensor
        for module in adapter.modules.values()
        for key, tensor in encode_module(PREFIX, module, torch.float32).items()
    } | {dense_key(PREFIX, name, torch.float32): delta for name, delta in adapter.dense.items()}
    strange = [key for key in tensors if key.endswith(DIFF_PARAM)]
    if strange:
        raise AdapterError(
            f"{adapter.label}: ComfyUI has no key for {len(strange)} dense deltas: {listing(strange, limit=3)}."
        )
    return Encoded(tensors)


CODEC = Codec("comfyui", _matches, _decode, _encode)
