"""The loss of one batch: encode, draw timesteps and noise, predict, compare.

What is drawn depends on (seed, epoch, sample) alone, so a batch has the same loss wherever it is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lbm_lora.model import bridge
from lbm_lora.model.build import LBMModel
from lbm_lora.training.data import Batch
from lbm_lora.training.loss.losses import Lpips, crop, crop_windows, latent_loss, pixel_loss
from lbm_lora.training.loss.objective import Objective, bridge_state, draw_timesteps, sample_generators

Images = Float[Tensor, "batch 3 height width"]
Latents = Float[Tensor, "batch channels rows columns"]
Losses = Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False, kw_only=True)
class BridgeStep:
    """A model with what it is trained for.

    Attributes:
        model: with or without a LoRA that learns in it; its VAE is frozen.
        seed: of the run.
        lpips: the network of the pixel loss, where that is LPIPS.
        mixed: compute in bf16 where autocast does; see `autocast`.
    """

    model: LBMModel
    objective: Objective
    seed: int
    lpips: Lpips | None = None
    mixed: bool = False

    def autocast(self) -> torch.autocast:
        """The precision of the computation, for whoever computes with the model. Encoding and decoding leave it."""
        # without a cache: a LoRA's weights are used once in a pass, and the cache would keep copies of all of them
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.mixed, cache_enabled=False)

    def losses(self, batch: Batch) -> Losses:
        """The loss of each sample, fp32, with gradients; a batch's loss is their mean."""
        draw = self._generators(batch.indices, batch.epoch, "timestep")
        return self.losses_at(batch, draw_timesteps(self.objective, draw), stream="noise")

    def losses_at(self, batch: Batch, timesteps: Float[Tensor, " batch"], *, stream: str) -> Losses:
        """The same at given timesteps.

        Args:
            stream: name of the noise; equal names, epochs and samples have equal noise.
        """
        source, target = self.latents(batch)
        noise = self._generators(batch.indices, batch.epoch, stream)
        noisy, sigma = bridge_state(self.objective, source, target, timesteps, noise)
        prediction = self.model.denoise(noisy, timesteps)
        mask = None if batch.mask is None else batch.mask.to(source.device)
        total = torch.zeros(len(source), device=source.device)
        if self.objective.latent_loss_weight:
            loss = latent_loss(self.objective, prediction, bridge.velocity(source, target), mask)
            total = total + self.objective.latent_loss_weight * loss
        if self.objective.pixel_loss_weight:
            made = bridge.predict_target(noisy, sigma, prediction)
            total = total + self.objective.pixel_loss_weight * self._pixel_loss(made, batch, mask)
        return total

    def latents(self, batch: Batch) -> tuple[Latents, Latents]:
        """Source and target latents in fp32, those of the cache where the batch has them."""
        if batch.latents is not None:
            source, target = batch.latents
            return source.to(self.model.device, torch.float32), target.to(self.model.device, torch.float32)
        if batch.source is None or batch.target is None:
            raise AssertionError("a batch has images or latents")
        return self.encode(batch.source), self.encode(batch.target)

    def encode(self, images: Images) -> Latents:
        """Latents of images in [-1, 1], in fp32: the mean of the posterior.

        One image after the other: its latent depends on nothing else in the batch, and is the one of the cache.
        """
        precise = replace(self.model, dtype=torch.float32)
        with torch.autocast(self.model.device.type, enabled=False):
            return torch.cat([precise.encode(image) for image in images.split(1)])

    def _pixel_loss(self, made: Latents, batch: Batch, mask: Tensor | None) -> Losses:
        """Decode a random window of the predicted target only, as large as the loss looks at."""
        if batch.target is None:
            raise AssertionError("a pixel loss needs the images")
        step, size = self.model.pixels_per_latent, self.objective.pixel_loss_max_size
        height, width = batch.target.shape[-2:]
        draw = self._generators(batch.indices, batch.epoch, "crop")
        windows = crop_windows(height, width, size, draw, step=step)
        decoded = decode(self.model, crop(made, windows, step=step))
        target = crop(batch.target.to(decoded.device), windows)
        return pixel_loss(
            self.objective, decoded, target, None if mask is None else crop(mask, windows), draw, self.lpips
        )

    def _generators(self, indices: Sequence[int], epoch: int, stream: str) -> list[torch.Generator]:
        return sample_generators(self.seed, epoch, indices, stream)


class BatchLoss(nn.Module):
    """The mean loss of a batch as a module: the forward pass that a strategy of several processes wraps."""

    def __init__(self, step: BridgeStep) -> None:
        super().__init__()
        self.denoiser = step.model.denoiser
        self.vae = step.model.vae
        self._step = step

    def forward(self, batch: Batch) -> Tensor:
        with self._step.autocast():
            return self._step.losses(batch).mean()


def decode(model: LBMModel, latents: Latents) -> Images:
    """Images of latents with gradients, in fp32 and not clamped. `LBMModel.decode` is for inference."""
    scale, shift = model.vae.config["scaling_factor"], model.vae.config.get("shift_factor") or 0.0
    with torch.autocast(model.device.type, enabled=False):
        images: Tensor = model.vae.decode((latents.float() / scale + shift).to(model.vae_dtype), return_dict=False)[0]
    return images.float()
