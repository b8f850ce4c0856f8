"""Map diffusers' names of SDXL's tensors to those of a single-file checkpoint (Stability AI's generative-models).

The table is built forward, from the names of a network: nothing is guessed from a foreign name. With n
layers per block, layer j of down block b is input block 1 + b * (n + 1) + j, and layer j of up block b is output
block b * (n + 1) + j. The VAE numbers its up blocks from the output side, and stores the projections of its attention
as 1x1 convolutions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

ADD_EMBEDDING = {
    f"add_embedding.linear_{layer}.{leaf}": f"{UNET_PREFIX}label_emb.0.{index}.{leaf}"
    for layer, index in ((1, 0), (2, 2))
    for leaf in ("weight", "bias")
}
"""Names of SDXL's text and time embedding, which a base drops."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_UNET_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_PLACE = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MID = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_keys(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers name -> single-file key for every tensor of a UNet.

    Args:
        names: diffusers' tensor names.
        config: the diffusers configuration: `layers_per_block` and `up_block_types` are read.
    """
    layers: int = config.get("layers_per_block", 2)
    up_types: list[str] = list(config.get("up_block_types", ()))
    return {name: UNET_PREFIX + _unet_key(name, layers, up_types) for name in names}


def vae_keys(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers name -> single-file key for every tensor of a VAE.

    Args:
        names: diffusers' tensor names.
        config: the diffusers configuration: the number of `block_out_channels` is read.
    """
    return {name: VAE_PREFIX + _vae_key(name, len(config["block_out_channels"])) for name in names}


def _unet_key(name: str, layers: int, up_types: list[str]) -> str:
    for start, key in _UNET_ENDS.items():
        if name.startswith(start + "."):
            return f"{key}.{_resnet(name[len(start) + 1 :]) if 'resnets' in start else name[len(start) + 1 :]}"
    place = _UNET_PLACE.fullmatch(name)
    if place is None:
        raise AssertionError(f"{name}: a UNet tensor that the table does not cover")
    side, block, kind, layer, rest = place[1], int(place[2]), place[3], int(place[4]), place[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv.', 'op.', 1)}"
    if kind == "upsamplers":
        position = 2 if "CrossAttn" in up_types[block] else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{position}.{rest}"
    index = block * (layers + 1) + layer + (1 if side == "down" else 0)
    blocks = "input_blocks" if side == "down" else "output_blocks"
    return f"{blocks}.{index}.0.{_resnet(rest)}" if kind == "resnets" else f"{blocks}.{index}.1.{rest}"


def _resnet(rest: str) -> str:
    module, _, leaf = rest.rpartition(".")
    return f"{_RESNET[module]}.{leaf}"


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
