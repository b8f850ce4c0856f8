"""Modules of an SDXL-shaped UNet, by diffusers' names and by those of a single-file checkpoint (sgm).

An LBM's denoiser is such a UNet: 792 modules with a matrix and 256 norms. The table is built forward, by loops over
blocks and layers; a foreign name is looked up in it, never taken apart: `_` for `.` cannot be undone by rule
(`to_out_0`, `time_emb_proj`, `conv_in`). With n layers per block, layer j of down block b is input block
1 + b * (n + 1) + j, and layer j of up block b is output block b * (n + 1) + j.

The table holds more than one model: every attention has the deepest transformer, and every resnet a `conv_shortcut`.
All names stay distinct, in each of the spellings.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from lbm_lora.errors import plural
from lbm_lora.naming import ModuleName, ParamName, leaf_of, module_of

SDXL_LEVELS = (False, True, True)
"""Whether the blocks of each level have attention, from the widest images down; up blocks in reverse order."""
SDXL_LAYERS = 2
SDXL_DEPTH = 10
"""The deepest transformer, that of the innermost level."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_LAYER = (
    "norm1",
    *(f"attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm2",
    *(f"attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm3",
    "ff.net.0.proj",
    "ff.net.2",
)
"""One layer of a transformer; inside attentions both spell the names alike."""


def unet_modules(
    down: Sequence[bool] = SDXL_LEVELS,
    up: Sequence[bool] = SDXL_LEVELS[::-1],
    layers: int = SDXL_LAYERS,
    depth: int = SDXL_DEPTH,
) -> dict[ModuleName, str]:
    """Return diffusers' name -> sgm name for every module that has parameters.

    Args:
        down, up: whether each down or up block has attention, in their order.
        layers: resnets of a down block; an up block has one more.
    """
    return {ModuleName(name): sgm for name, sgm in _unet(down, up, layers, depth)}


def _unet(down: Sequence[bool], up: Sequence[bool], layers: int, depth: int) -> Iterator[tuple[str, str]]:
    yield "conv_in", "input_blocks.0.0"
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    for block, has_attention in enumerate(down):
        first = 1 + block * (layers + 1)
        for layer in range(layers):
            yield from _resnet(f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{first + layer}.0")
            if has_attention:
                place = f"down_blocks.{block}.attentions.{layer}"
                yield from _attention(place, f"input_blocks.{first + layer}.1", depth)
        if block < len(down) - 1:
            yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{first + layers}.0.op"
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield from _attention("mid_block.attentions.0", "middle_block.1", depth)
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    for block, has_attention in enumerate(up):
        first = block * (layers + 1)
        for layer in range(layers + 1):
            yield from _resnet(f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{first + layer}.0")
            if has_attention:
                yield from _attention(
                    f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{first + layer}.1", depth
                )
        if block < len(up) - 1:
            position = 2 if has_attention else 1
            yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{first + layers}.{position}.conv"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"


def _resnet(name: str, sgm: str) -> Iterator[tuple[str, str]]:
    for part, foreign in _RESNET.items():
        yield f"{name}.{part}", f"{sgm}.{foreign}"


def _attention(name: str, sgm: str, depth: int) -> Iterator[tuple[str, str]]:
    layers = [f"transformer_blocks.{index}.{part}" for index in range(depth) for part in _LAYER]
    for part in ("norm", "proj_in", *layers, "proj_out"):
        yield f"{name}.{part}", f"{sgm}.{part}"


def is_norm(name: ParamName) -> bool:
    """Return whether a parameter belongs to a norm: `norm1`, `norm`, `conv_norm_out`, `group_norm`."""
    return "norm" in module_of(name).rpartition(".")[2]


def counted(names: Collection[ParamName]) -> str:
    """Return what parameters with dense deltas are: `10 biases and 512 norm parameters`; empty without any."""
    norms = sum(map(is_norm, names))
    biases = sum(leaf_of(name) == "bias" and not is_norm(name) for name in names)
    kinds = [
        (biases, plural(biases, "bias", "biases")),
        (norms, plural(norms, "norm parameter")),
        (others := len(names) - biases - norms, plural(others, "other parameter")),
    ]
    return " and ".join(text for count, text in kinds if count)


def kernel_of(name: ModuleName) -> tuple[int, ...]:
    """Return the kernel of a module's weight: (3, 3), (1, 1), or () for a matrix."""
    last = name.rpartition(".")[2]
    return (1, 1) if last == "conv_shortcut" else (3, 3) if last.startswith("conv") else ()


def flat(name: str) -> str:
    """Return a name with `_` for `.`, as kohya's and LyCORIS' keys have it."""
    return name.replace(".", "_")


SGM: Mapping[ModuleName, str] = unet_modules()
"""Module -> its sgm name: `conv_in` -> `input_blocks.0.0`."""
BY_SGM: Mapping[str, ModuleName] = {sgm: name for name, sgm in SGM.items()}
"""The inverse of `SGM`."""
BY_FLAT: Mapping[str, ModuleName] = {flat(name): name for name in SGM}
"""Module by its flat name: `mid_block_attentions_0_proj_in`."""
BY_FLAT_SGM: Mapping[str, ModuleName] = {flat(sgm): name for name, sgm in SGM.items()}
"""Module by its flat sgm name: `middle_block_1_proj_in`."""
