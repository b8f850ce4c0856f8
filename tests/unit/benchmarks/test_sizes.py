"""Networks of a scale."""

import pytest

from benchmarks.sizes import backbone_unet, lbm_config
from lbm_lora.model.constants import LBM_TENSORS, LBM_UNET, SDXL_VAE
from lbm_lora.model.names import denoiser_shapes


def test_scale_1_is_the_real_lbm() -> None:
    config = lbm_config(1)
    assert config.unet_config == dict(LBM_UNET)
    assert config.vae_config == dict(SDXL_VAE)
    shapes = denoiser_shapes(config.unet_config)
    assert len(shapes) == LBM_TENSORS


@pytest.mark.parametrize("scale", [0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
def test_a_smaller_scale_can_be_built_and_is_narrower(scale: float) -> None:
    unet = lbm_config(scale).unet_config
    shapes = denoiser_shapes(unet)
    assert shapes["conv_in.weight"][0] < 320
    assert all(
        width % heads == 0 for width, heads in zip(unet["block_out_channels"], unet["attention_head_dim"], strict=True)
    )


def test_the_depth_decides_the_number_of_layers() -> None:
    count = [len(denoiser_shapes(lbm_config(0.1, depth).unet_config)) for depth in ((1, 1, 1), (1, 2, 10))]
    assert count[0] < count[1] == LBM_TENSORS


def test_the_backbone_of_scale_1_has_the_inputs_of_sdxl() -> None:
    shapes = denoiser_shapes(backbone_unet(lbm_config(1).unet_config))
    assert shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (1280, 2048)
    assert shapes["add_embedding.linear_1.weight"] == (1280, 2816)
