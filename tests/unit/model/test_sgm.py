"""The table of single-file names against diffusers' own converter, and against names of the published file."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from lbm_lora.model import backbone
from standins import MINI, backbone_unet_config, unet_shapes, vae_config, vae_shapes

UNET = backbone_unet_config(MINI)
VAE = vae_config()
UNET_NAMES = [name for name in unet_shapes(UNET) if not name.startswith("add_embedding.")]


def test_unet_names_are_what_diffusers_converts_back() -> None:
    keys = backbone.unet_keys(UNET_NAMES, UNET) | backbone.ADD_EMBEDDING
    assert len(set(keys.values())) == 1680
    single_file = {key: torch.tensor(index) for index, key in enumerate(keys.values())}
    converted = convert_ldm_unet_checkpoint(single_file, UNET)
    assert {name: int(tensor) for name, tensor in converted.items()} == {name: i for i, name in enumerate(keys)}


def test_vae_names_are_what_diffusers_converts_back() -> None:
    keys = backbone.vae_keys(vae_shapes(VAE), VAE)
    assert len(set(keys.values())) == 248
    single_file = {key: torch.full((1, 1, 1, 1), float(index)) for index, key in enumerate(keys.values())}
    converted = convert_ldm_vae_checkpoint(single_file, VAE)
    assert {name: int(tensor.flatten()[0]) for name, tensor in converted.items()} == {n: i for i, n in enumerate(keys)}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("time_embedding.linear_2.bias", "time_embed.2.bias"),
        ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        ("mid_block.resnets.1.time_emb_proj.weight", "middle_block.2.emb_layers.1.weight"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.2.conv.weight"),
        ("up_blocks.1.resnets.0.conv_shortcut.weight", "output_blocks.3.0.skip_connection.weight"),
        ("conv_norm_out.weight", "out.0.weight"),
    ],
)
def test_names_of_the_published_single_file(name: str, key: str) -> None:
    assert backbone.unet_keys([name], UNET) == {name: f"model.diffusion_model.{key}"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
        ("decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"),
        ("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", "encoder.down.1.block.0.nin_shortcut.weight"),
        ("encoder.mid_block.attentions.0.to_out.0.weight", "encoder.mid.attn_1.proj_out.weight"),
        ("encoder.mid_block.attentions.0.group_norm.bias", "encoder.mid.attn_1.norm.bias"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
    ],
)
def test_names_of_the_published_single_file_vae(name: str, key: str) -> None:
    assert backbone.vae_keys([name], VAE) == {name: f"first_stage_model.{key}"}
