"""The training loop, the data and the model configurations that the trainers share."""

import argparse
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin
from diffusers.utils import logging
from torch import Tensor, distributed, multiprocessing, nn

logging.set_verbosity_error()

PROCESSES = 2
"""Each has one thread. Two threads of one process would wait for each other at every operation."""
CHECKPOINT_STEPS = 100
TRAIN_VIEWS = 2
TINT = (0.4, 0.25, 0.4)
EXPOSURE = 0.45
"""Standard deviations of the logarithm of the gains of red, green and blue, and of all together."""
GRAY = 0.18
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")

VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 2,
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
    "norm_num_groups": 2,
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
        """The object under light i over background j: a render where i is j, else a source; uint8 RGB."""
        return common.over(self.objects[scene, i], self.alpha[scene], self.backgrounds[scene, j])


def load_scenes(work: Path, split: str, *, first: int | None = None) -> Scenes:
    """Read every scene of a split into memory, or the first ones, graded."""
    scenes = [dict(np.load(path)) for path in common.scene_paths(work, split)[:first]]
    read = Scenes(
        np.stack([scene["objects"] for scene in scenes]),
        np.stack([scene["backgrounds"] for scene in scenes]),
        np.stack([scene["alpha"] for scene in scenes]).astype(np.float32),
        [json.loads(str(scene["info"])) for scene in scenes],
    )
    return grade(read)


def grade(scenes: Scenes) -> Scenes:
    """Tint each light, and grade its background to the mean color of the light on the object.

    A background shows little of what lights the object, and a small model trained on few HDRIs cannot guess the rest.
    So the object under each light gets a random gain per channel, the same for a scene whenever it is graded, and the
    background's mean becomes the color that a gray object would have there. Light means the object's mean relative to
    its mean under all lights of the scene.
    """
    objects, backgrounds = scenes.objects.copy(), scenes.backgrounds.copy()
    for scene, alpha in enumerate(scenes.alpha):
        rng = np.random.default_rng([scene, 4])
        weight = alpha[None, ..., None] / alpha.sum()
        linear = (objects[scene] / np.float32(255)) ** 2.2
        behind = (backgrounds[scene] / np.float32(255)) ** 2.2
        mean = (linear * weight).sum((1, 2)) + 1e-3
        light = np.clip(mean / np.exp(np.log(mean).mean(0)), 0.2, 5)
        tint = np.exp(rng.normal(size=(len(mean), 3)) * TINT + rng.normal(size=(len(mean), 1)) * EXPOSURE)
        tint *= np.minimum(1, 0.6 / (mean * tint).max(1, keepdims=True))
        backdrop = GRAY * light * tint / (behind.mean((1, 2)) + 1e-3)
        for images, pixels, gain in ((objects, linear, tint), (backgrounds, behind, backdrop)):
            graded = np.clip(pixels * gain[:, None, None].astype(np.float32), 0, 1) ** (1 / 2.2)
            white = pixels.min(-1, keepdims=True) > 0.97
            images[scene] = np.round(np.where(white, 1, graded) * 255)
    return Scenes(objects, backgrounds, scenes.alpha, scenes.info)


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
            file.replace(folder / file.name)


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


def latents_path(work: Path, vae: AutoencoderKL, split: str, view: int) -> Path:
    """Where the latents of a view are kept: named by the VAE's weights and the number of scenes."""
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in vae.state_dict().values())).hexdigest()[:12]
    return work / f"latents/{split}-{len(common.scene_paths(work, split))}-view{view}-{digest}.pt"


def encode_view(work: Path, vae: AutoencoderKL, split: str, view: int) -> Path:
    """Encode all composites of a split, (scenes, lights i, lights j, 4, 16, 16), into a file, if it is not there.

    View 0 shows the scenes as they are. The others have the color channels in another order, each scene in an order of
    its own, and the odd ones are mirrored.
    """
    path = latents_path(work, vae, split, view)
    if path.exists():
        return path
    scenes = load_scenes(work, split)
    pairs = [(i, j) for i in range(common.LIGHTS_PER_SCENE) for j in range(common.LIGHTS_PER_SCENE)]
    encoded = []
    for scene in range(len(scenes.alpha)):
        images = np.stack([scenes.composite(scene, i, j) for i, j in pairs])
        if view:
            images = images[..., np.random.default_rng([view, scene]).permutation(3)]
        if view % 2:
            images = images[:, :, ::-1]
        with torch.autocast("cpu", torch.bfloat16):
            encoded.append(encode(vae, np.ascontiguousarray(images)).float())
    with common.atomic(path) as temporary:
        torch.save(torch.stack(encoded).unflatten(1, (common.LIGHTS_PER_SCENE, -1)), temporary)
    return path


def train_latents(work: Path, vae: AutoencoderKL, rank: int) -> Tensor:
    """All views of the training scenes, (views, scenes, lights i, lights j, 4, 16, 16).

    The processes share the encoding.
    """
    for view in range(rank, TRAIN_VIEWS, PROCESSES):
        encode_view(work, vae, "train", view)
    distributed.barrier()
    paths = [latents_path(work, vae, "train", view) for view in range(TRAIN_VIEWS)]
    return torch.stack([torch.load(path, weights_only=True) for path in paths])


def launch(train: Callable[[int, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run `train(rank, args)` in PROCESSES processes that train one model together."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_enter, (train, args, f"file://{folder}/store"), nprocs=PROCESSES)


def _enter(rank: int, train: Callable[[int, argparse.Namespace], None], args: argparse.Namespace, store: str) -> None:
    torch.set_num_threads(1)
    limit = timedelta(hours=1)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=limit)
    train(rank, args)
    distributed.destroy_process_group()


def share_gradients(parameters: list[nn.Parameter], limit: float = 1.0) -> None:
    """Average the gradients over all processes, and scale them down to a norm of at most `limit`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= PROCESSES
    flat *= min(1.0, limit / (float(flat.norm()) + 1e-6))
    parts = flat.split([gradient.numel() for gradient in gradients])
    views = [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
    torch._foreach_copy_(gradients, views)


def fit(
    model: nn.Module,
    loss_of: Callable[[np.random.Generator], Tensor],
    *,
    name: str,
    work: Path,
    rank: int,
    steps: int,
    peak_rate: float,
    seed: int,
    ema_decay: float = 0.998,
) -> dict[str, Any]:
    """Train `model` with AdamW, a warm-up and a cosine, and leave the moving average of its weights in it.

    Each step and process draws from its own generator, made of the seed, the step and the rank, so that a run that was
    killed goes on from its last checkpoint, `work/NAME.state.pt`, just as it would have gone. Another number of `steps`
    may be asked for then.

    Returns:
        steps, seconds (of training, interruptions left out) and losses (the mean of every 25 steps, of one process).
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]
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
        torch.manual_seed((seed * 1_000_003 + step) * PROCESSES + rank)
        loss = loss_of(np.random.default_rng([seed, step, rank]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        share_gradients(parameters)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(ema_decay, (step + 1) / (step + 10)))
        losses.append(loss.item())
        step += 1
        seconds = time.monotonic() - started
        if rank == 0 and step % 25 == 0:
            print(f"{name} {step}/{steps} loss {np.mean(losses[-25:]):.4f} {seconds / step:.3f} s/step", flush=True)
        if rank == 0 and (step % CHECKPOINT_STEPS == 0 or step == steps):
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

    with torch.no_grad():
        torch._foreach_copy_(parameters, average)
    model.eval()
    torch.set_num_threads(PROCESSES)
    curve = [round(float(np.mean(losses[i : i + 25])), 5) for i in range(0, len(losses), 25)]
    return {"steps": step, "seconds": round(seconds), "losses": curve}
