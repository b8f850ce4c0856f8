"""Map diffusers' names of SDXL's tensors to those of a single-file checkpoint (Stability AI's generative-models).

Tables are built forward, from the names of a network: nothing is guessed from a foreign name. The UNet's is
`adapter/formats/names.py`, since the LoRAs of other programs need it too. The VAE numbers its up blocks from the output
side, and stores the projections of its attention as 1x1 convolutions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lbm_lora.adapter.formats.names import unet_modules
from lbm_lora.naming import ParamName, leaf_of, module_of

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

ADD_EMBEDDING = {
    f"add_embedding.linear_{layer}.{leaf}": f"{UNET_PREFIX}label_emb.0.{index}.{leaf}"
    for layer, index in ((1, 0), (2, 2))
    for leaf in ("weight", "bias")
}
"""Names of SDXL's text and time embedding, which a base drops."""

_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_PLACE = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MID = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_keys(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers name -> single-file key for every tensor of a UNet.

    Args:
        names: diffusers' tensor names.
        config: the diffusers configuration: `layers_per_block`, the block types and
            `transformer_layers_per_block` are read.
    """
    depths: int | list[Any] = config.get("transformer_layers_per_block", 1)
    modules = unet_modules(
        ["CrossAttn" in kind for kind in config["down_block_types"]],
        ["CrossAttn" in kind for kind in config["up_block_types"]],
        config.get("layers_per_block", 2),
        max(_numbers(depths)),
    )
    params = [ParamName(name) for name in names]
    return {name: f"{UNET_PREFIX}{modules[module_of(name)]}.{leaf_of(name)}" for name in params}


def vae_keys(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers name -> single-file key for every tensor of a VAE.

    Args:
        names: diffusers' tensor names.
        config: the diffusers configuration: the number of `block_out_channels` is read.
    """
    return {name: VAE_PREFIX + _vae_key(name, len(config["block_out_channels"])) for name in names}


def _numbers(depths: int | list[Any]) -> list[int]:
    """Return the numbers in a setting that may have one per model, per block, or per layer of each block."""
    return [depths] if isinstance(depths, int) else [number for depth in depths for number in _numbers(depth)]


def _vae_key(name: str, levels: int) -> str:
    place, mid = _VAE_PLACE.fullmatch(name), _VAE_MID.fullmatch(name)
    if place:
        half, block, kind, layer, rest = place[1], int(place[2]), place[3], int(place[4]), place[5]
        side = "down" if half == "encoder" else "up"
        level = block if half == "encoder" else levels - 1 - block
        if kind != "resnets":
            return f"{half}.{side}.{level}.{side}sample.{rest}"
        return f"{half}.{side}.{level}.block.{layer}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    if mid:
        half, kind, layer, rest = mid[1], mid[2], int(mid[3]), mid[4]
        module, _, leaf = rest.rpartition(".")
        attention = f"attn_{layer + 1}.{_VAE_ATTENTION.get(module, module)}.{leaf}"
        return f"{half}.mid.{attention if kind == 'attentions' else f'block_{layer + 1}.{rest}'}"
    return name.replace("conv_norm_out", "norm_out")
