"""Make the base and tuned checkpoints for all measurements, and the backbone for `base`.

Their networks are LBM's own, or narrower and shallower ones of the same topology. Files are streamed by our own writer,
with a few tensors in memory at a time. Existing files are reused; their settings are recorded next to them.

A weight matrix has normal values of variance 1 / fan-in. Its delta has 4 % of the matrix's norm: 70 % of the energy in
singular values that decay as k^-p, 30 % in white noise. p is between 0.5 and 1 and differs between layers. The
decaying part has at most 256 columns, so that it can be made as a product of two thin factors. Everything depends only
on the seed and the tensor's name.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from benchmarks.machine import require_space
from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec
from lbm_lora.files import write_text
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import LBM_UNET, SDXL_VAE
from lbm_lora.model.names import Shapes, checkpoint_shapes, empty_unet, empty_vae, shapes_of
from lbm_lora.model.resolve import config_to_metadata
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.runtime import ordered_map

COLUMNS = 256
DELTA_SHARE = 0.04  # of the matrix's norm
NOISE_ENERGY = 0.3
POWERS = (0.5, 1.0)

_HEAD = 64  # channels of an attention head in SDXL's UNet
_GROUP = 32  # widths must be multiples of this
_OUTPUTS = 3  # checkpoint-sized files that a theme may write in addition to the pair


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two `.safetensors` files, and their settings."""

    base: Path
    tuned: Path
    facts: dict[str, object]


def lbm_config(scale: float) -> LBMConfig:
    """Return LBM's configuration with scaled widths and depth; 1 is the real LBM."""
    if scale == 1:
        return LBMConfig(unet=dict(LBM_UNET), vae=dict(SDXL_VAE))
    width = _HEAD * max(1, round(320 * scale / _HEAD)) if scale >= 0.15 else _GROUP
    widths = [width, 2 * width, 4 * width]
    unet = dict(LBM_UNET) | {
        "block_out_channels": widths,
        "transformer_layers_per_block": [max(1, round(layers * scale)) for layers in (1, 2, 10)],
        "attention_head_dim": [max(1, channels // _HEAD) for channels in widths],
        "cross_attention_dim": widths,
    }
    width = max(_GROUP, _GROUP * round(128 * scale / _GROUP))
    vae = dict(SDXL_VAE) | {"block_out_channels": [width, 2 * width, 4 * width, 4 * width]}
    return LBMConfig(unet=unet, vae=vae)


def make_pair(folder: Path, *, scale: float = 1, seed: int = 0) -> Pair:
    """Return the pair of a scale in `folder`, created if missing.

    Raises:
        SystemExit: the disk is too small for the pair and its outputs.
    """
    config = lbm_config(scale)
    shapes = checkpoint_shapes(config)
    facts = _facts(config, shapes, scale, seed)
    pair = Pair(base=folder / "base.safetensors", tuned=folder / "tuned.safetensors", facts=facts)
    note = folder / "pair.json"  # written last
    if note.exists() and json.loads(note.read_text()) == facts:
        return pair
    require_space(folder, (2 + _OUTPUTS) * _nbytes(shapes, torch.bfloat16), f"a pair of checkpoints of scale {scale:g}")
    print(f"making the pair: {json.dumps(facts)}", flush=True)

    def before(name: str, shape: tuple[int, ...]) -> Tensor:
        return weight(name, shape, seed).bfloat16()

    def after(name: str, shape: tuple[int, ...]) -> Tensor:  # the VAE and the counter stay as they are
        is_tuned = name.startswith(DENOISER_PREFIX)
        return delta(name, shape, seed).add_(before(name, shape)) if is_tuned else before(name, shape)

    for path, make in ((pair.base, before), (pair.tuned, after)):
        _write(path, shapes, torch.bfloat16, make, **config_to_metadata(config))
    write_text(note, json.dumps(facts, indent=2) + "\n")
    return pair


def make_backbone(folder: Path, *, scale: float = 1, seed: int = 0) -> Path:
    """Make a folder in SDXL's diffusers layout, with random values in fp32, as an exact base needs.

    Its UNet has text cross-attention and the embedding of text and time, which the denoiser lacks.
    """
    scheduler = folder / "scheduler" / "scheduler_config.json"  # written last
    if scheduler.exists():
        return folder
    config = lbm_config(scale)
    text = {"cross_attention_dim": 2048 * config.unet_config["block_out_channels"][0] // 320}
    text |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    text |= {"projection_class_embeddings_input_dim": 2816}
    unet = {"_class_name": "UNet2DConditionModel", **config.unet_config, **text}
    vae = {"_class_name": "AutoencoderKL", **config.vae_config}
    parts = {"unet": (unet, shapes_of(empty_unet(unet))), "vae": (vae, shapes_of(empty_vae(config.vae_config)))}
    require_space(folder, sum(_nbytes(shapes, torch.float32) for _, shapes in parts.values()), "a backbone")
    print("making the backbone", flush=True)
    for part, (network, shapes) in parts.items():
        write_text(folder / part / "config.json", json.dumps(network, indent=2))
        path = folder / part / "diffusion_pytorch_model.safetensors"
        _write(path, shapes, torch.float32, partial(weight, seed=seed))
    settings = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    write_text(scheduler, json.dumps(settings, indent=2))
    return folder


def power_of(name: str, seed: int) -> float:
    """Return the exponent p of a layer's singular values."""
    low, high = POWERS
    return low + (high - low) * (_seed(name, seed, "power") % 1001) / 1000


def weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the fp32 tensor of a name."""
    if not shape:
        return torch.zeros(())
    noise = torch.randn(shape, generator=_generator(name, seed, "weight"))
    if len(shape) == 1:
        return noise.mul_(0.05).add_(1) if name.endswith(".weight") else noise.mul_(0.02)
    return noise.mul_(_spread(shape))


def delta(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the fp32 delta of a name."""
    noise = torch.randn(shape, generator=_generator(name, seed, "delta"))
    if len(shape) < 2:
        return noise.mul_(0.002)
    scale = DELTA_SHARE * _spread(shape)
    matrix = noise.reshape(shape[0], -1)
    rows, columns = matrix.shape
    count = min(COLUMNS, rows, columns)
    values = torch.arange(1, count + 1, dtype=torch.float32) ** -power_of(name, seed)
    values *= scale * math.sqrt((1 - NOISE_ENERGY) * matrix.numel()) / values.norm()
    left = _orthonormal(name, rows, count, seed, "left") * values
    right = _orthonormal(name, columns, count, seed, "right")
    torch.addmm(matrix, left, right.mT, beta=scale * math.sqrt(NOISE_ENERGY), out=matrix)
    return matrix.reshape(shape)


def _write(path: Path, shapes: Shapes, dtype: torch.dtype, make: Callable[..., Tensor], **metadata: str) -> None:
    """Stream a file of the tensors that `make` returns for name and shape, two at a time."""
    specs = {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
    with SafetensorsWriter(path, specs, metadata={"format": "pt", **metadata}) as writer:
        tensors = ordered_map(lambda item: make(*item).to(dtype), shapes.items(), threads=2)
        for name, tensor in zip(shapes, tensors, strict=True):
            writer.write(name, tensor)


def pair_facts(scale: float, seed: int) -> dict[str, object]:
    """Return the settings of the pair of a scale, which need not exist."""
    config = lbm_config(scale)
    return _facts(config, checkpoint_shapes(config), scale, seed)


def _facts(config: LBMConfig, shapes: Shapes, scale: float, seed: int) -> dict[str, object]:
    unet = config.unet_config
    denoiser = {name: shape for name, shape in shapes.items() if name.startswith(DENOISER_PREFIX)}
    return {
        "scale": scale,
        "seed": seed,
        "widths": list(unet["block_out_channels"]),
        "depth": list(unet["transformer_layers_per_block"]),
        "tensors of the denoiser": len(denoiser),
        "parameters of the denoiser": _nbytes(denoiser, torch.bfloat16) // 2,
        "dtype": "bf16",
        "weights": "normal, variance 1 / fan-in; norms about 1, biases about 0",
        "delta": f"{DELTA_SHARE:.0%} of the weight's norm",
        "singular values": f"k^-p, p from {POWERS[0]} to {POWERS[1]} by layer, {COLUMNS} columns at most",
        "white noise": f"{NOISE_ENERGY:.0%} of the delta's energy",
        "rounding": "base, then base + delta, to bf16",
    }


def _nbytes(shapes: Shapes, dtype: torch.dtype) -> int:
    return sum(TensorSpec(dtype, shape).nbytes for shape in shapes.values())


def _spread(shape: tuple[int, ...]) -> float:
    return 1 / math.sqrt(math.prod(shape[1:]))


def _orthonormal(name: str, rows: int, columns: int, seed: int, what: str) -> Tensor:
    """Return orthonormal columns specific to a name: permuting rows and flipping signs keeps them orthonormal."""
    generator = _generator(name, seed, what)
    order = torch.randperm(rows, generator=generator)
    signs = torch.randint(0, 2, (rows, 1), generator=generator) * 2.0 - 1
    return _basis(rows, seed)[order, :columns] * signs


@lru_cache(maxsize=64)
def _basis(rows: int, seed: int) -> Tensor:
    generator = _generator("basis", seed, str(rows))
    return torch.linalg.qr(torch.randn(rows, min(rows, COLUMNS), generator=generator)).Q


def _generator(name: str, seed: int, what: str) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(name, seed, what))


def _seed(name: str, seed: int, what: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed} {what} {name}".encode()) >> 1
