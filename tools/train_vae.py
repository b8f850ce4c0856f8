"""Train the mini model's VAE: SDXL's autoencoder with its widths divided by 8.

Trained on renders and composites (with the training meshes, textures and HDRIs only), photos and textures, with an L2
loss at two scales, an L1 loss of the gradients and a very small KL term. Writes work/mini/backbone/vae and
work/mini/vae_result.json.
"""

import argparse
from pathlib import Path

import common
import numpy as np
import skimage.data
import torch
import training
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 6
"""Crops per process and step."""
CROP = 64
"""Side of the crops. One step in five takes two whole images instead."""
KL_WEIGHT = 1e-6
SEED = 1


def still_images(work: Path) -> list[Image.Image]:
    """The photos and the training textures, to be cropped."""
    photos = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in training.PHOTOS]
    textures = [
        Image.open(path).convert("RGB")
        for path in common.texture_paths(work)
        if path.stem not in common.HELD_OUT_TEXTURES
    ]
    return photos * 4 + textures


def random_crop(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A random square of an image, scaled to the image size; uint8."""
    side = int(rng.integers(min(common.IMAGE_SIZE, min(image.size)), min(image.size) + 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    size = (common.IMAGE_SIZE, common.IMAGE_SIZE)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, (left, top, left + side, top + side)))


def draw_batch(scenes: training.Scenes, stills: list[Image.Image], rng: np.random.Generator) -> Tensor:
    """One batch: three quarters composites and renders, one quarter crops; half mirrored, a third in other colours."""
    images = []
    for position in range(BATCH):
        if position % 4:
            i, j = rng.integers(common.LIGHTS_PER_SCENE, size=2)
            image = scenes.composite(int(rng.integers(len(scenes.alpha))), int(i), int(j))
        else:
            image = random_crop(stills[rng.integers(len(stills))], rng)
        image = image[:, ::-1] if rng.random() < 0.5 else image
        images.append(image[..., rng.permutation(3)] if rng.random() < 0.35 else image)
    return training.to_tensor(np.stack(images))


def reconstruction_loss(output: Tensor, image: Tensor) -> Tensor:
    """L2 at full and quarter size, plus L1 of the horizontal and vertical differences."""
    error = output - image
    scales = error.square().mean() + F.avg_pool2d(error, 4).square().mean()
    return 4 * scales + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


@torch.no_grad()
def start_as_pooling(vae: AutoencoderKL) -> None:
    """Set the weights so that the untrained VAE's latents are the mean color of 8x8 pixels, which it decodes smoothly.

    From random weights some thousand steps pass before a network this narrow keeps colors: its norms remove what a
    whole image has in common. Here channels 0 to 2 carry the color and 3 to 5 its negative (silu(x) - silu(-x) = x),
    channels 6 and 7 constants that keep the norms' scale the same for all images. All residual branches start at zero.
    """
    identity = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    pooling = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]) / 4
    smoothing = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16

    def carry(convolution: nn.Conv2d, kernel: Tensor) -> None:
        convolution.weight.zero_()
        for channel in range(convolution.out_channels):
            convolution.weight[channel, channel % convolution.in_channels] = kernel

    def read(convolution: nn.Conv2d, channel: int, source: int) -> None:
        convolution.weight[channel] = 0
        convolution.weight[channel, source] = identity

    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                carry(module.conv_shortcut, torch.ones(1, 1))
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
        elif isinstance(module, Downsample2D):
            carry(module.conv, pooling)
        elif isinstance(module, Upsample2D):
            carry(module.conv, smoothing)
    for half in (vae.encoder, vae.decoder):
        for color in range(3):
            read(half.conv_in, color, color)
            read(half.conv_in, color + 3, color)
            half.conv_in.weight[color + 3] *= -1
            read(half.conv_out, color, color)
            half.conv_out.weight[color, color + 3] = -identity
        half.conv_in.weight[6:8] = 0
        half.conv_in.bias[:6] = 0
        half.conv_in.bias[6:8] = torch.tensor([2.0, -2.0])
        half.conv_out.bias.zero_()
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        carry(convolution, torch.ones(1, 1))
        convolution.bias.zero_()
    # Little noise in the posterior: with the default of 1 the decoder learns to ignore the latents.
    latents = vae.config["latent_channels"]
    vae.quant_conv.weight[latents:] *= 0.01
    vae.quant_conv.bias[latents:] = -6.0


def measure(vae: AutoencoderKL, work: Path) -> tuple[float, float]:
    """Mean PSNR in dB of the reconstructions of the held-out renders, whole and inside the mask."""
    scenes = training.load_scenes(work, "held_out")
    whole, inside = [], []
    for scene, alpha in enumerate(scenes.alpha):
        images = np.stack([scenes.composite(scene, light, light) for light in range(common.LIGHTS_PER_SCENE)])
        with torch.no_grad():
            outputs = training.to_uint8(vae.decode(vae.encode(training.to_tensor(images)).latent_dist.mean).sample)
        whole += [training.psnr(a, b) for a, b in zip(images, outputs, strict=True)]
        inside += [training.psnr(a, b, alpha) for a, b in zip(images, outputs, strict=True)]
    return float(np.mean(whole)), float(np.mean(inside))


def latent_deviation(vae: AutoencoderKL, scenes: training.Scenes) -> float:
    """Standard deviation of the posterior means of 400 renders."""
    means = []
    for start in range(0, 400, 16):
        images = [scenes.composite(k % len(scenes.alpha), k % 4, k % 4) for k in range(start, start + 16)]
        with torch.no_grad():
            means.append(vae.encode(training.to_tensor(np.stack(images))).latent_dist.mean)
    return float(torch.cat(means).std())


def train(rank: int, args: argparse.Namespace) -> None:
    """Train in every process; measure and save in the first."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL(**training.VAE_CONFIG)
    if len(vae.state_dict()) != 248:
        raise ValueError(f"expected SDXL's 248 VAE tensors, found {len(vae.state_dict())}")
    start_as_pooling(vae)
    scenes, stills = training.load_scenes(args.work, "train"), still_images(args.work)

    def loss_of(rng: np.random.Generator) -> Tensor:
        image = draw_batch(scenes, stills, rng)
        if rng.random() < 0.8:
            top, left = rng.integers(0, common.IMAGE_SIZE - CROP + 1, size=2)
            image = image[..., top : top + CROP, left : left + CROP]
        else:
            image = image[:2]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(image).latent_dist
            output = vae.decode(posterior.sample()).sample
        return reconstruction_loss(output.float(), image) + KL_WEIGHT * posterior.kl().float().mean() / 1024

    result = training.fit(
        vae, loss_of, name="vae", work=args.work, rank=rank, steps=args.steps, peak_rate=1e-3, seed=SEED
    )
    if rank:
        return
    folder = args.work / "mini/backbone/vae"
    training.save_network(vae, folder)
    vae = training.load_vae(args.work)
    scaling = 1 / latent_deviation(vae, scenes)
    vae.register_to_config(scaling_factor=round(scaling, 5))
    training.save_network(vae, folder)

    whole, inside = measure(vae, args.work)
    result |= {"psnr_held_out_renders": round(whole, 2), "psnr_held_out_renders_inside_mask": round(inside, 2)}
    result |= {"scaling_factor": round(scaling, 5), "train_scenes": len(scenes.alpha)}
    common.write_json(args.work / "mini/vae_result.json", result)
    print({key: value for key, value in result.items() if key != "losses"})


def main() -> None:
    """Read the arguments and train."""
    training.launch(train, common.parse_args(__doc__ or "", steps=4000))


if __name__ == "__main__":
    main()
