"""Fine-tune the mini model's LBM from its exact base: relight an object for the background it is pasted on.

The base is made by lbm_lora from the backbone, as for any LBM. The denoiser is trained in fp32 from the base's bf16
values; the VAE is frozen, latents are means of its posterior. Writes work/mini/tuned in the layout of the published
LBM repositories (bf16), work/mini/tuned_result.json and the pictures work/mini/held_out.png.
"""

import argparse
from itertools import chain
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import training
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.model import bridge
from lbm_lora.model.backbone import open_backbone
from lbm_lora.model.bridge_pipeline import follow_bridge
from lbm_lora.model.build import load_model
from lbm_lora.model.config import parse_config
from lbm_lora.model.base import write_base

BATCH = 12
"""Pairs per process and step."""
SEED = 3
PEAK_RATE = 8e-4
MEASURED_PAIRS = {"held_out": 480, "check": 480, "train": 120}
DENOISER_COUNTS = {"tensors": 1676, "linear": 741, "conv3x3": 40, "conv1x1": 11, "one_dimensional": 884}

LBM_CONFIG: dict[str, Any] = {
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
"""config.yaml of the published relighting model, but for the backbone."""


def make_base(work: Path) -> Path:
    """The exact base of the backbone, made by lbm_lora."""
    config = parse_config(LBM_CONFIG, where="LBM_CONFIG")
    with open_backbone(str(work / "mini/backbone"), config) as backbone:
        return write_base(backbone, config, work / "mini/base.safetensors").safetensors


def check_counts(denoiser: UNet2DConditionModel) -> None:
    """Raise ValueError where the denoiser has not as many tensors of each kind as LBM's."""
    tensors = list(denoiser.state_dict().values())
    found = {
        "tensors": len(tensors),
        "linear": sum(tensor.ndim == 2 for tensor in tensors),
        "conv3x3": sum(tensor.shape[2:] == (3, 3) for tensor in tensors),
        "conv1x1": sum(tensor.shape[2:] == (1, 1) for tensor in tensors),
        "one_dimensional": sum(tensor.ndim == 1 for tensor in tensors),
    }
    if found != DENOISER_COUNTS:
        raise ValueError(f"expected {DENOISER_COUNTS}, found {found}")


def bridge_loss(denoiser: UNet2DConditionModel, source: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Latent l2 loss of LBM at one sigma per sample, on the predicted target (sigma squared times the velocity's)."""
    noise = torch.randn_like(source)
    noisy = bridge.interpolate(source, target, sigma, noise, LBM_CONFIG["bridge_noise_sigma"])
    prediction = denoiser(noisy, sigma * bridge.TRAIN_TIMESTEPS, encoder_hidden_states=None).sample
    error = prediction - bridge.velocity(source, target)
    return (sigma[:, None, None, None] * error).square().mean()


def draw_pairs(latents: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch of source and target latents: object under light i over background j, and render under light j.

    More than half of them show the scenes as they are.
    """
    views, scenes, lights = latents.shape[:3]
    view = rng.integers(views, size=BATCH) * rng.integers(2, size=BATCH)
    scene, i = rng.integers(scenes, size=BATCH), rng.integers(lights, size=BATCH)
    j = (i + rng.integers(1, lights, size=BATCH)) % lights
    return latents[view, scene, i, j], latents[view, scene, j, j]


def ordered_pairs(scenes: training.Scenes) -> list[tuple[int, int, int]]:
    """Every ordered pair of lights of every scene, as (scene, i, j)."""
    lights = range(common.LIGHTS_PER_SCENE)
    return [(scene, i, j) for scene in range(len(scenes.alpha)) for i in lights for j in lights if i != j]


@torch.no_grad()
def translate(
    denoiser: UNet2DConditionModel | None, vae: AutoencoderKL, images: np.ndarray, steps: int = 1
) -> np.ndarray:
    """The LBM's output for uint8 sources, 16 at a time; uint8. Without a denoiser, the VAE's reconstruction."""
    outputs = []
    for start in range(0, len(images), 16):
        latent = training.encode(vae, images[start : start + 16])
        if denoiser is not None:
            latent = follow_bridge(
                lambda noisy, timestep: denoiser(noisy, timestep, encoder_hidden_states=None).sample,
                latent,
                steps,
                LBM_CONFIG["bridge_noise_sigma"],
                torch.Generator().manual_seed(SEED),
            )
        outputs.append(training.decode(vae, latent))
    return np.concatenate(outputs)


def measure(
    work: Path, base: UNet2DConditionModel, tuned: UNet2DConditionModel, vae: AutoencoderKL, split: str
) -> dict[str, float]:
    """Mean PSNR in dB against the target, of pairs of a split, inside the mask and outside it.

    `inside_pooled` is the PSNR of the mean squared error over all masked pixels of the split together, akin to the
    fMSE of the paper (Table 3).

    `vae_of_target` is what the VAE alone loses. Also writes pictures, three pairs a row: source, base, tuned, target.
    """
    scenes = training.load_scenes(work, split)
    pairs = ordered_pairs(scenes)[: MEASURED_PAIRS[split]]
    masks = [scenes.alpha[scene] for scene, _, _ in pairs]
    targets = np.stack([scenes.composite(scene, j, j) for scene, _, j in pairs])
    sources = np.stack([scenes.composite(*pair) for pair in pairs])
    outputs = {
        "source": sources,
        "base": translate(base, vae, sources),
        "tuned": translate(tuned, vae, sources),
        "tuned_4_steps": translate(tuned, vae, sources, steps=4),
        "vae_of_target": translate(None, vae, targets),
    }
    shown = [
        [outputs[name][k] for name in ("source", "base", "tuned")] + [targets[k]] for k in range(0, len(pairs), 13)
    ]
    sheet = [list(chain(*shown[k : k + 3])) for k in range(0, len(shown), 3)]
    common.contact_sheet(sheet, work / f"mini/{split}.png")

    result: dict[str, float] = {"pairs": len(pairs)}
    inside = {}
    for name, images in outputs.items():
        triples = list(zip(images, targets, masks, strict=True))
        inside[name] = np.array([training.psnr(image, target, mask) for image, target, mask in triples])
        outside = [training.psnr(image, target, 1 - mask) for image, target, mask in triples]
        result[f"{name}_inside"] = round(float(inside[name].mean()), 2)
        result[f"{name}_inside_pooled"] = round(training.psnr(images, targets, np.stack(masks)), 2)
        if name != "source":
            result[f"{name}_outside"] = round(float(np.mean(outside)), 2)
    better = np.mean(inside["tuned"] > inside["source"])
    return result | {"share_of_pairs_better_than_source": round(float(better), 3)}


def write_tuned(work: Path, base: Path, denoiser: UNet2DConditionModel) -> Path:
    """Write config.yaml and model.safetensors; all but the denoiser comes from the base."""
    folder = work / "mini/tuned"
    with open_checkpoint(base) as checkpoint:
        tensors = {key: checkpoint.read(key).clone() for key in checkpoint.specs}
    tensors |= {
        f"denoiser.{name}": value.to(torch.bfloat16).contiguous() for name, value in denoiser.state_dict().items()
    }
    with common.atomic(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    plain = {"unet": dict(load_model(base).config.unet_config), "vae": dict(load_model(base).config.vae_config)}
    with common.atomic(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(LBM_CONFIG | plain, sort_keys=False))
    return folder


def train(rank: int, args: argparse.Namespace) -> None:
    """Train in every process; measure and save in the first."""
    base_path = args.work / "mini/base.safetensors"
    base = load_model(base_path, dtype=torch.float32).denoiser
    denoiser = load_model(base_path, dtype=torch.float32).denoiser.requires_grad_(True)
    check_counts(denoiser)
    vae = training.load_vae(args.work)
    latents = training.train_latents(args.work, vae, rank)
    levels = np.array(LBM_CONFIG["selected_timesteps"]) / bridge.TRAIN_TIMESTEPS

    def loss_of(rng: np.random.Generator) -> Tensor:
        source, target = draw_pairs(latents, rng)
        sigma = torch.from_numpy(rng.choice(levels, size=BATCH, p=LBM_CONFIG["prob"])).float()
        return bridge_loss(denoiser, source, target, sigma)

    denoiser.to(memory_format=torch.channels_last)
    result = training.fit(
        denoiser, loss_of, name="tuned", work=args.work, rank=rank, steps=args.steps, peak_rate=PEAK_RATE, seed=SEED
    )
    if rank:
        return
    folder = write_tuned(args.work, base_path, denoiser)
    tuned = load_model(folder, dtype=torch.float32).denoiser
    for split in MEASURED_PAIRS:
        result[f"{split}_psnr"] = measure(args.work, base, tuned, vae, split)
    common.write_json(args.work / "mini/tuned_result.json", result)
    print({key: value for key, value in result.items() if key != "losses"})


def main() -> None:
    """Read the arguments, make the base and train."""
    args = common.parse_args(__doc__ or "", steps=3700)
    make_base(args.work)
    training.launch(train, args)


if __name__ == "__main__":
    main()
