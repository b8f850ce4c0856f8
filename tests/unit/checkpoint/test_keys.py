"""Keys without the names that trainers wrap around modules."""

import pytest

from lbm_lora.checkpoint.reader import normalized, normalized_keys
from lbm_lora.errors import CheckpointError


@pytest.mark.parametrize(
    ("key", "short"),
    [
        ("denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("model.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("module.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("module.model.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("model.module.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("model._orig_mod.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("_orig_mod.module.model.denoiser._orig_mod.mid.weight", "denoiser.mid.weight"),
        ("_forward_module.model.vae.vae_model.encoder.conv_in.bias", "vae.vae_model.encoder.conv_in.bias"),
        ("denoiser.block._fsdp_wrapped_module._checkpoint_wrapped_module.conv.weight", "denoiser.block.conv.weight"),
        ("model.num_iterations", "num_iterations"),
        # names of other networks
        ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.input_blocks.0.0.weight"),
        ("model.0.conv.weight", "model.0.conv.weight"),
        ("backbone.module.conv.weight", "backbone.module.conv.weight"),
        ("module", "module"),
        ("model", "model"),
        ("weight", "weight"),
    ],
)
def test_wrappers_go_and_names_stay(key: str, short: str) -> None:
    assert normalized(key) == short
    assert normalized(short) == short


def test_two_keys_that_become_one_are_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        normalized_keys(["denoiser.a", "model.denoiser.a", "module.c", "c"], "x.ckpt")
    assert str(caught.value) == (
        "x.ckpt: these keys are the same without their wrappers: denoiser.a and model.denoiser.a, module.c and c. "
        "Remove one of each pair."
    )
