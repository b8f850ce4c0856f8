"""The training loop, the data and the model configurations that the trainers share."""

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin
from diffusers.utils import logging
from torch import Tensor, nn

logging.set_verbosity_error()

THREADS = 2
CHECKPOINT_STEPS = 100
TRAIN_VIEWS = 4
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")

VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": common.IMAGE_SIZE,
}
"""SDXL's VAE with its widths divided by 8."""

BACKBONE_CONFIG: dict[str, Any] = {
    "sample_size": common.IMAGE_SIZE // 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [1, 2, 4],
    "use_linear_projection": True,
    "norm_num_groups": 8,
    "cross_attention_dim": 96,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 96,
}
"""SDXL's UNet with its widths divided by 20: its pooled text is 48 wide, its 6 time ids are embedded 8 wide each."""

SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}
"""SDXL's EulerDiscreteScheduler."""


@dataclass(frozen=True, slots=True)
class Scenes:
    """All rendered scenes of a split, as render_pairs.py describes them."""

    objects: np.ndarray
    """uint8 (scenes, lights, height, width, 3)."""
    backgrounds: np.ndarray
    """uint8 (scenes, lights, height, width, 3)."""
    alpha: np.ndarray
    """float32 (scenes, height, width)."""
    info: list[dict[str, Any]]

    def composite(self, scene: int, i: int, j: int) -> np.ndarray:
        """The object under light i over background j: a render where i is j, else a source; uint8 (height, width, 3)."""
        return common.over(self.objects[scene, i], self.alpha[scene], self.backgrounds[scene, j])


def load_scenes(work: Path, split: str) -> Scenes:
    """Read every scene of a split into memory."""
    scenes = [dict(np.load(path)) for path in common.scene_paths(work, split)]
    return Scenes(
        np.stack([scene["objects"] for scene in scenes]),
        np.stack([scene["backgrounds"] for scene in scenes]),
        np.stack([scene["alpha"] for scene in scenes]).astype(np.float32),
        [json.loads(str(scene["info"])) for scene in scenes],
    )


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 images (n, height, width, 3) to float32 (n, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_uint8(images: Tensor) -> np.ndarray:
    """Inverse of `to_tensor`, with clipping and rounding."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def psnr(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images, weighted by a mask (height, width) where one is given."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean(-1)
    mean = error.mean() if weight is None else (error * weight).sum() / weight.sum()
    return float(10 * np.log10(255**2 / max(mean, 1e-9)))


def save_network(network: ModelMixin, folder: Path) -> None:
    """Store a diffusers network in bf16, file by file in one move each."""
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    copy = type(network).from_config(config)
    copy.load_state_dict(network.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        copy.to(torch.bfloat16).save_pretrained(temporary)
        for file in sorted(Path(temporary).iterdir()):
            os.replace(file, folder / file.name)


def load_vae(work: Path) -> AutoencoderKL:
    """The trained VAE as it is stored (bf16), in fp32."""
    return AutoencoderKL.from_pretrained(work / "mini/backbone/vae", torch_dtype=torch.float32).eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Scaled posterior means (n, 4, height/8, width/8) of uint8 images."""
    return vae.encode(to_tensor(images)).latent_dist.mean * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """uint8 images of scaled latents."""
    return to_uint8(vae.decode(latents / vae.config.scaling_factor).sample)


def cached_latents(work: Path, vae: AutoencoderKL, split: str, views: int) -> Tensor:
    """Latents of all composites of a split, (views, scenes, lights i, lights j, 4, 16, 16).

    View 0 shows the scenes as they are. The others are copies with the color channels in another order, each scene in an
    order of its own, the odd ones mirrored. They are kept in files named by the VAE's weights and the number of scenes.
    """
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in vae.state_dict().values())).hexdigest()[:12]
    scenes = load_scenes(work, split)
    pairs = [(i, j) for i in range(common.LIGHTS_PER_SCENE) for j in range(common.LIGHTS_PER_SCENE)]
    stack = []
    for view in range(views):
        path = work / f"latents/{split}-{len(scenes.alpha)}-view{view}-{digest}.pt"
        if not path.exists():
            encoded = []
            for scene in range(len(scenes.alpha)):
                images = np.stack([scenes.composite(scene, i, j) for i, j in pairs])
                if view:
                    images = images[..., np.random.default_rng([view, scene]).permutation(3)]
                if view % 2:
                    images = images[:, :, ::-1]
                encoded.append(encode(vae, np.ascontiguousarray(images)))
            with common.atomic(path) as temporary:
                torch.save(torch.stack(encoded).unflatten(1, (common.LIGHTS_PER_SCENE, -1)), temporary)
        stack.append(torch.load(path, weights_only=True))
    return torch.stack(stack)


def fit(
    model: nn.Module,
    loss_of: Callable[[np.random.Generator], Tensor],
    *,
    name: str,
    work: Path,
    steps: int,
    peak_rate: float,
    seed: int,
    ema_decay: float = 0.998,
) -> dict[str, Any]:
    """Train `model` with AdamW, a warm-up and a cosine, and leave the moving average of its weights in it.

    Each step draws from its own generator, made of the seed and the step's number, so that a run that was killed goes on
    from its last checkpoint, `work/NAME.state.pt`, just as it would have gone. More or fewer `steps` may be asked for then.

    Returns:
        steps, seconds (of training, interruptions left out) and losses (the mean of every 25 steps).
    """
    torch.set_num_threads(THREADS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    losses: list[float] = []
    step, seconds = 0, 0.0

    checkpoint = work / f"{name}.state.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, losses, step, seconds = state["average"], state["losses"], state["step"], state["seconds"]

    model.train()
    started = time.monotonic() - seconds
    while step < steps:
        rate = peak_rate * min(1.0, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed * 1_000_003 + step)
        loss = loss_of(np.random.default_rng([seed, step]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        losses.append(loss.item())
        step += 1
        seconds = time.monotonic() - started
        if step % 25 == 0:
            print(f"{name} {step}/{steps} loss {np.mean(losses[-25:]):.4f} {seconds / step:.3f} s/step", flush=True)
        if step % CHECKPOINT_STEPS == 0 or step == steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "losses": losses,
                "step": step,
                "seconds": seconds,
            }
            with common.atomic(checkpoint) as temporary:
                torch.save(state, temporary)

    model.load_state_dict(average)
    model.eval()
    curve = [round(float(np.mean(losses[i : i + 25])), 5) for i in range(0, len(losses), 25)]
    return {"steps": step, "seconds": round(seconds), "losses": curve}
