"""Pretrain the mini model's backbone: SDXL's UNet with its widths divided by 20, as an epsilon-predicting denoiser.

Trained on the scaled latents of all training renders and composites, with one constant text and one set of constant
time ids. Writes work/mini/backbone in the folder layout of SDXL (bf16) and work/mini/backbone_result.json.
"""

import argparse
from pathlib import Path

import common
import diffusers
import numpy as np
import torch
import training
from diffusers import EulerDiscreteScheduler, Transformer2DModel, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.nn import functional as F

BATCH = 16
"""Latents per process and step."""
SEED = 2
TEXT_TOKENS = 8


def constant_conditions(count: int) -> dict[str, object]:
    """The constant text embedding, pooled text and time ids, for a batch of `count`."""
    generator = torch.Generator().manual_seed(SEED)
    text = torch.randn(1, TEXT_TOKENS, training.BACKBONE_CONFIG["cross_attention_dim"], generator=generator)
    pooled = torch.randn(1, 48, generator=generator)
    size = float(common.IMAGE_SIZE)
    time_ids = torch.tensor([[size, size, 0.0, 0.0, size, size]])
    return {
        "encoder_hidden_states": text.expand(count, -1, -1),
        "added_cond_kwargs": {"text_embeds": pooled.expand(count, -1), "time_ids": time_ids.expand(count, -1)},
    }


def denoising_loss(
    unet: UNet2DConditionModel, latents: Tensor, timesteps: Tensor, noise: Tensor, kept: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise; `kept` is the cumulative product of alphas by timestep."""
    share = kept[timesteps][:, None, None, None]
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    return F.mse_loss(unet(noisy, timesteps, **constant_conditions(len(latents))).sample, noise)


@torch.no_grad()
def held_out_loss(unet: UNet2DConditionModel, latents: Tensor, kept: Tensor) -> float:
    """The loss on held-out renders, at 20 timesteps spread evenly."""
    generator = torch.Generator().manual_seed(SEED)
    losses = []
    for timestep in range(25, 1000, 50):
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.full((len(latents),), timestep)
        losses.append(float(denoising_loss(unet, latents, timesteps, noise, kept)))
    return float(np.mean(losses))


def write_rest(scheduler: EulerDiscreteScheduler, folder: Path) -> None:
    """Write what the backbone folder holds beside its networks."""
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, object] = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": diffusers.__version__}
    index |= {name: [None, None] for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    index |= {"scheduler": ["diffusers", "EulerDiscreteScheduler"], "unet": ["diffusers", "UNet2DConditionModel"]}
    common.write_json(folder / "model_index.json", index | {"vae": ["diffusers", "AutoencoderKL"]})


def train(rank: int, args: argparse.Namespace) -> None:
    """Train in every process; measure and save in the first."""
    torch.manual_seed(SEED)
    unet = UNet2DConditionModel(**training.BACKBONE_CONFIG)
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            torch.nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Transformer2DModel):
            torch.nn.init.zeros_(module.proj_out.weight)
    scheduler = EulerDiscreteScheduler(**training.SCHEDULER_CONFIG)
    kept = scheduler.alphas_cumprod
    vae = training.load_vae(args.work)
    latents = training.train_latents(args.work, vae, rank).flatten(0, 3)

    def loss_of(rng: np.random.Generator) -> Tensor:
        chosen = latents[rng.integers(len(latents), size=BATCH)]
        timesteps = torch.from_numpy(rng.integers(1000, size=BATCH))
        return denoising_loss(unet, chosen, timesteps, torch.randn_like(chosen), kept)

    unet.to(memory_format=torch.channels_last)
    result = training.fit(
        unet, loss_of, name="backbone", work=args.work, rank=rank, steps=args.steps, peak_rate=6e-4, seed=SEED
    )
    if rank:
        return
    folder = args.work / "mini/backbone"
    training.save_network(unet, folder / "unet")
    write_rest(scheduler, folder)
    saved = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    held_out = (
        torch.load(training.encode_view(args.work, vae, "held_out", 0), weights_only=True)
        .diagonal(dim1=1, dim2=2)
        .movedim(-1, 1)
        .flatten(0, 1)
    )
    result |= {"held_out_loss": round(held_out_loss(saved, held_out, kept), 4)}
    common.write_json(args.work / "mini/backbone_result.json", result)
    print({key: value for key, value in result.items() if key != "losses"})


def main() -> None:
    """Read the arguments and train."""
    training.launch(train, common.parse_args(__doc__ or "", steps=600))


if __name__ == "__main__":
    main()
