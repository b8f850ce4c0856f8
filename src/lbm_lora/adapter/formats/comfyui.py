"""ComfyUI's own keys on a model that holds an LBM: `diffusion_model.` in place of the checkpoint's prefix.

    diffusion_model.<module>.lora_up.weight, .lora_down.weight, .alpha
    diffusion_model.<module>.diff, .diff_b

The stock loader strips `diffusion_model.` from its own names and adds a dense delta as it is; it knows no dense delta
of a parameter that is neither weight nor bias. Its names are those of the loaded model: diffusers' names for an LBM.
Reading also takes sgm's names, which a stock SDXL has, every ending of factors that ComfyUI tries, native keys next to
`.dora_scale`, and the files of FastVideo, which have no prefix and `.diff_param`, `.set_weight` or `.set_param`.
"""

from collections.abc import Collection, Mapping

import torch

from lbm_lora.adapter.formats.codec import Codec, Decoded, Encoded, Source, Wishes, only_deltas
from lbm_lora.adapter.formats.names import BY_SGM
from lbm_lora.adapter.formats.reading import read
from lbm_lora.adapter.module import Adapter
from lbm_lora.adapter.native import DIFF_PARAM, dense_key, encode_module
from lbm_lora.errors import AdapterError, listing
from lbm_lora.naming import DENOISER_PREFIX, ModuleName

PREFIX = "diffusion_model."
_NOT_NATIVE = (".lora_A.", ".lora_B.", ".dora_scale", ".set_weight", ".set_param")
_FASTVIDEO = (".diff_param", ".set_weight", ".set_param")


def _matches(keys: Collection[str], header: Mapping[str, str]) -> bool:
    if any(key.startswith(PREFIX) for key in keys):
        return True
    if any(key.startswith(DENOISER_PREFIX) for key in keys):
        return any(part in key for key in keys for part in _NOT_NATIVE)
    if any(key.startswith(("unet.", "base_model.")) for key in keys):
        return False
    has_factors = any(".lora_A." in key or ".lora_up." in key for key in keys)
    return has_factors and any(key.endswith((*_FASTVIDEO, ".dora_scale")) for key in keys)


def _decode(source: Source) -> Decoded:
    def named(stem: str) -> ModuleName:
        prefix = next((prefix for prefix in (PREFIX, DENOISER_PREFIX) if stem.startswith(prefix)), "")
        name = stem.removeprefix(prefix)
        return BY_SGM.get(name, ModuleName(name))

    return read(source, named)


def _encode(adapter: Adapter, wishes: Wishes) -> Encoded:
    only_deltas(wishes, "comfyui")
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
