"""Random stand-ins for a backbone and a fine-tuned LBM: the real topology, narrow, seeded, written in a moment.

`write_backbone` makes a folder in SDXL's diffusers layout (unet/, vae/, scheduler/), `write_tuned` one in
the layout of the published LBM repositories (config.yaml + model.safetensors). A tuned model is the crop of
the backbone with the same seed and depth, plus a small delta of low effective rank on every tensor of the
denoiser. Values have the scale of a fresh initialisation, so a forward pass is finite. Each tensor has its
own seed, made from its name: the same name, shape and seed give the same values in any file.

MINI has the shapes of the bundled mini model (1676 denoiser tensors, 6.1 M parameters); TINY has one
transformer layer per block and the same module types, for the fastest tests.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

Depth = tuple[int, int, int]
MINI: Depth = (1, 2, 10)
TINY: Depth = (1, 1, 1)

WIDTHS = (16, 32, 64)
CROSS_ATTENTION = 96

LBM_YAML: dict[str, Any] = {
    "backbone_signature": "../backbone",
    "vae_num_channels": 4,
    "unet_input_channels": 4,
    "timestep_sampling": "custom_timesteps",
    "selected_timesteps": [250, 500, 750, 1000],
    "prob": [0.25, 0.25, 0.25, 0.25],
    "conditioning_images_keys": [],
    "conditioning_masks_keys": [],
    "source_key": "source_image",
    "target_key": "source_image_paste",
    "bridge_noise_sigma": 0.005,
}
"""The keys of the published relighting config.yaml."""


def backbone_unet_config(depth: Depth = MINI) -> dict[str, Any]:
    """SDXL's UNet configuration with narrow widths."""
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": list(WIDTHS),
        "layers_per_block": 2,
        "transformer_layers_per_block": list(depth),
        "attention_head_dim": [1, 2, 4],
        "norm_num_groups": 8,
        "cross_attention_dim": CROSS_ATTENTION,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 96,
    }


def lbm_unet_config(depth: Depth = MINI) -> dict[str, Any]:
    """The LBM denoiser's configuration: no added embedding, cross-attention as wide as the blocks."""
    return backbone_unet_config(depth) | {
        "cross_attention_dim": list(WIDTHS),
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    }


def vae_config() -> dict[str, Any]:
    """SDXL's VAE configuration with narrow widths."""
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 128,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [16, 32, 64, 64],
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }


def unet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a UNet, in diffusers' order."""
    with torch.device("meta"):
        return _shapes(UNet2DConditionModel(**_settings(config)))


def vae_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a VAE, in diffusers' order."""
    with torch.device("meta"):
        return _shapes(AutoencoderKL(**_settings(config)))


def values(name: str, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """The fp32 tensor of that name: weights of norms about 1, biases small, matrices with variance 1 / fan-in."""
    noise = torch.randn(shape, generator=_generator("value", name, seed))
    if len(shape) == 1:
        return 1 + 0.05 * noise if name.endswith(".weight") else 0.02 * noise
    return noise / torch.tensor(shape[1:]).prod().sqrt()


def delta(name: str, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """A fine-tune's fp32 delta: for matrices a quickly falling spectrum above small noise, else noise of size 0.01."""
    generator = _generator("delta", name, seed)
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.01 * noise
    rows, columns = shape[0], noise[0].numel()
    rank = min(8, rows, columns)
    up = torch.randn(rows, rank, generator=generator) * 0.5 ** torch.arange(rank)
    down = torch.randn(rank, columns, generator=generator)
    return (0.1 * (up @ down).reshape(shape) + 0.01 * noise) / columns**0.5


def backbone_unet(depth: Depth = MINI, *, seed: int = 0) -> dict[str, Tensor]:
    """The backbone's UNet, fp32."""
    return {name: values(name, s, seed=seed) for name, s in unet_shapes(backbone_unet_config(depth)).items()}


def backbone_vae(*, seed: int = 0) -> dict[str, Tensor]:
    """The backbone's VAE, fp32."""
    return {name: values(f"vae.{name}", s, seed=seed) for name, s in vae_shapes(vae_config()).items()}


def base_tensors(depth: Depth = MINI, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The exact base of the backbone, in a checkpoint's keys: cropped here by hand, not by the package."""
    source = backbone_unet(depth, seed=seed)
    tensors = {}
    for name, shape in unet_shapes(lbm_unet_config(depth)).items():
        whole = source[name]
        tensors[f"denoiser.{name}"] = whole if whole.shape == shape else whole[:, : shape[1]].contiguous()
    tensors |= {f"vae.vae_model.{name}": tensor for name, tensor in backbone_vae(seed=seed).items()}
    tensors["num_iterations"] = torch.tensor(0.0)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def tuned_tensors(depth: Depth = MINI, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The base with a delta on every tensor of the denoiser, in a checkpoint's keys."""
    return {
        name: (tensor + delta(name, tuple(tensor.shape), seed=seed) if name.startswith("denoiser.") else tensor).to(
            dtype
        )
        for name, tensor in base_tensors(depth, seed=seed).items()
    }


def write_backbone(
    folder: Path, depth: Depth = MINI, *, seed: int = 0, dtype: torch.dtype = torch.float32, variant: str = ""
) -> Path:
    """Write a backbone folder in SDXL's diffusers layout and return it.

    Args:
        variant: `fp16` names the files as diffusers names that variant.
    """
    dot = f".{variant}" if variant else ""
    parts = {
        "unet": (backbone_unet_config(depth), backbone_unet(depth, seed=seed)),
        "vae": (vae_config(), backbone_vae(seed=seed)),
    }
    for part, (config, tensors) in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(config, indent=2))
        cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(cast, folder / part / f"diffusion_pytorch_model{dot}.safetensors", metadata={"format": "pt"})
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    return folder


def write_lbm_yaml(folder: Path, depth: Depth = MINI, *, networks: bool = True, **changes: Any) -> Path:
    """Write LBM's config.yaml and return its path.

    Args:
        networks: with the unet and vae sections that a model of other than LBM's own widths needs.
        changes: keys that differ from `LBM_YAML`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = {"unet": lbm_unet_config(depth), "vae": vae_config()} if networks else {}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(LBM_YAML | changes | sections, sort_keys=False))
    return path


def write_tuned(
    folder: Path, depth: Depth = MINI, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes: Any
) -> Path:
    """Write a tuned LBM as the published repositories are laid out; returns the path of its model.safetensors."""
    write_lbm_yaml(folder, depth, **changes)
    path = folder / "model.safetensors"
    save_file(tuned_tensors(depth, seed=seed, dtype=dtype), path, metadata={"format": "pt"})
    return path


def write_base(
    folder: Path, depth: Depth = MINI, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes: Any
) -> Path:
    """Write the exact base in the same layout; returns the path of its model.safetensors."""
    write_lbm_yaml(folder, depth, **changes)
    path = folder / "model.safetensors"
    save_file(base_tensors(depth, seed=seed, dtype=dtype), path, metadata={"format": "pt"})
    return path


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _generator(kind: str, name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{kind} {name} {seed}".encode()))


@dataclass(frozen=True)
class Lbm:
    """Paths of a backbone, its base and a tuned descendant, laid out side by side."""

    backbone: Path
    base: Path
    tuned: Path


def write_lbm(folder: Path, depth: Depth = TINY) -> Lbm:
    """Write all three into a folder."""
    return Lbm(
        backbone=write_backbone(folder / "backbone", depth),
        base=write_base(folder / "base", depth),
        tuned=write_tuned(folder / "tuned", depth),
    )
