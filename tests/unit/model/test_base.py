"""The rule that makes a base, tensor by tensor, as a plan."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lbm_lora.checkpoint import TensorSpec
from lbm_lora.errors import CheckpointError, OutputError
from lbm_lora.model.backbone import open_backbone
from lbm_lora.model.base import BaseFiles, plan_base, write_base
from lbm_lora.model.config import LBMConfig, parse_config
from standins import (
    LBM_YAML,
    MINI,
    TINY,
    Depth,
    backbone_unet_config,
    base_tensors,
    lbm_unet_config,
    unet_shapes,
    vae_config,
    vae_shapes,
    write_backbone,
)

Specs = dict[str, TensorSpec]
TO_K = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def specs_of(shapes: dict[str, tuple[int, ...]]) -> Specs:
    return {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}


def config_of(**unet: Any) -> LBMConfig:
    channels = unet.get("in_channels", 4)
    return LBMConfig(unet_input_channels=channels, unet=lbm_unet_config(TINY) | unet, vae=vae_config())


@pytest.fixture
def unet() -> Specs:
    return specs_of(unet_shapes(backbone_unet_config(TINY)))


@pytest.fixture
def vae() -> Specs:
    return specs_of(vae_shapes(vae_config()))


def test_the_mini_plan_is_the_documented_one(vae: Specs) -> None:
    unet = specs_of(unet_shapes(backbone_unet_config(MINI)))
    config = LBMConfig(unet=lbm_unet_config(MINI), vae=vae_config())
    plan = plan_base(unet, vae, config, where="backbone")
    assert Counter(item.action for item in plan) == {"copied": 1536 + 248, "cropped": 140, "dropped": 4, "added": 1}
    kept = [item.key for item in plan if item.to_shape is not None]
    assert sum(key.startswith("denoiser.") for key in kept) == 1676
    for item in plan:
        if item.action == "cropped":
            assert ".attn2.to_" in item.source
            assert item.source.endswith(("to_k.weight", "to_v.weight"))
        if item.action == "dropped":
            assert item.source.startswith("add_embedding.linear_")
            assert item.to_shape is None


def test_what_the_rule_does_not_explain_is_an_error(unet: Specs, vae: Specs) -> None:
    unet["mid_block.attentions.0.proj_in.weight"] = TensorSpec(torch.float32, (64, 64, 1, 1))
    unet[TO_K] = TensorSpec(torch.float32, (32, 96))
    unet["controlnet.weight"] = TensorSpec(torch.float32, (1,))
    del vae["quant_conv.bias"]
    with pytest.raises(CheckpointError) as caught:
        plan_base(unet, vae, config_of(), where="backbone x")
    assert str(caught.value) == (
        "backbone x: 4 tensors do not fit the rule that makes a base: "
        "denoiser.mid_block.attentions.0.proj_in.weight is (64, 64, 1, 1), but (64, 64) in LBM, "
        f"denoiser.{TO_K} is (32, 96), but (64, 64) in LBM, "
        "vae.vae_model.quant_conv.bias is missing, "
        "denoiser.controlnet.weight (1,) has no place in LBM. "
        "Does the configuration belong to this backbone?"
    )


CONFIG = parse_config(LBM_YAML, where="config.yaml")


def written(backbone: Path, out: Path, config: LBMConfig = CONFIG, dtype: torch.dtype = torch.bfloat16) -> BaseFiles:
    with open_backbone(str(backbone), config) as opened:
        return write_base(opened, config, out, dtype=dtype, source_config=LBM_YAML)


@pytest.fixture(scope="module")
def result(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseFiles:
    return written(backbone_folder, tmp_path_factory.mktemp("base") / "checkpoints" / "exact_base.ckpt")


def twins(result: BaseFiles) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    held = torch.load(result.ckpt, weights_only=True)
    return load_file(result.safetensors), held["model_state_dict"]


@pytest.mark.parametrize(
    ("depth", "count", "dtype"), [(MINI, 1676, torch.bfloat16), (TINY, 496, torch.float16), (TINY, 496, torch.float32)]
)
def test_the_base_is_the_crop_of_its_backbone_bit_for_bit(
    tmp_path: Path, depth: Depth, count: int, dtype: torch.dtype
) -> None:
    """Against a crop written in the stand-ins, without the package."""
    result = written(write_backbone(tmp_path / "backbone", depth), tmp_path / "base.ckpt", dtype=dtype)
    expected = base_tensors(depth, dtype=dtype)
    assert sum(key.startswith("denoiser.") for key in expected) == count
    for tensors in twins(result):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_the_entries_of_the_ckpt(result: BaseFiles) -> None:
    held = torch.load(result.ckpt, weights_only=True)
    assert held.keys() == {
        "model_state_dict", "state_dict", "config", "lbm_config", "backbone_signature", "architecture", "torch_dtype",
        "source_config", "initialization", "created_from", "lpips_excluded", "note",
    }  # fmt: skip
    assert held["architecture"] == "LBM"
    assert held["torch_dtype"] == "torch.bfloat16"
    assert held["initialization"] == "exact_architecture_match"
    assert held["created_from"] == "inference_config_initialization"
    assert held["lpips_excluded"] is True
    assert held["source_config"] == LBM_YAML
    assert held["backbone_signature"] == "backbone", "no folder name"
    assert held["config"]["bridge_noise_sigma"] == 0.005
    assert held["lbm_config"]["unet"]["cross_attention_dim"] == [16, 32, 64]


def test_the_ckpt_suits_the_earlier_implementation(result: BaseFiles) -> None:
    """Its loader passes three values of its own beside `config`, whose keys it and LBM's own configuration know."""
    held = torch.load(result.ckpt, weights_only=True)

    def create(backbone_signature: str, device: str, torch_dtype: torch.dtype, **config: object) -> dict[str, object]:
        return config

    given = create(
        backbone_signature=held["backbone_signature"], device="cpu", torch_dtype=torch.bfloat16, **held["config"]
    )
    assert given.keys() == {
        "vae_num_channels", "unet_input_channels", "conditioning_images_keys", "conditioning_masks_keys", "source_key",
        "target_key", "mask_key", "latent_loss_weight", "latent_loss_type", "pixel_loss_type", "pixel_loss_weight",
        "pixel_loss_max_size", "timestep_sampling", "logit_mean", "logit_std", "selected_timesteps", "prob",
        "bridge_noise_sigma",
    }  # fmt: skip


def test_the_ckpt_suits_lbms_own_loader(result: BaseFiles) -> None:
    """It takes the keys of `state_dict` that start with `model.`, and loads them strictly."""
    held = torch.load(result.ckpt, weights_only=True, mmap=True)
    state = {key[6:]: value for key, value in held["state_dict"].items() if key.startswith("model.")}
    expected = load_file(result.safetensors)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    assert result.ckpt.stat().st_size < 1.2 * result.safetensors.stat().st_size, "no tensor is stored twice"


def test_a_base_from_fp16_files_is_not_exact(tmp_path: Path) -> None:
    half = write_backbone(tmp_path / "half", TINY, dtype=torch.float16, variant="fp16")
    result = written(half, tmp_path / "base.ckpt")
    assert result.notes == (
        "The backbone's weights are stored in fp16: the base is not exact. Full-precision files, rounded once to bf16, "
        "differ from it in about 6 % of the elements.",
    )
    found, exact = load_file(result.safetensors), base_tensors(TINY, dtype=torch.bfloat16)
    differing = sum(int((found[name] != tensor).sum()) for name, tensor in exact.items())
    assert 0.04 < differing / sum(tensor.numel() for tensor in exact.values()) < 0.08
    assert written(half, tmp_path / "base16.ckpt", dtype=torch.float16).notes == ()


def test_the_backbone_is_never_overwritten(backbone_folder: Path) -> None:
    weights = backbone_folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(OutputError, match="would be overwritten"):
        written(backbone_folder, weights.with_suffix(".ckpt"))
    assert weights.read_bytes() == before
