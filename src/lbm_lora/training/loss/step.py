"""Compute the loss of one batch: encode, draw timesteps and noise, predict, compare.

Random draws depend only on (seed, epoch, sample), so a batch has the same loss wherever it is computed.
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
    """A model with its objective.

    Attributes:
        model: the model, with or without a trainable LoRA; its VAE is frozen.
        seed: seed of the run.
        lpips: network of the pixel loss, if that is LPIPS.
        mixed: compute in bf16 where autocast does; see `autocast`.
    """

    model: LBMModel
    objective: Objective
    seed: int
    lpips: Lpips | None = None
    mixed: bool = False

    def autocast(self) -> torch.autocast:
        """Return the context that sets the precision of computations with the model, except encoding and decoding."""
        # without a cache: a LoRA's weights are used once per pass, and the cache would keep copies of all of them
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.mixed, cache_enabled=False)

    def losses(self, batch: Batch) -> Losses:
        """Return the loss of each sample, fp32, with gradients; a batch's loss is their mean."""
        draw = self._generators(batch.indices, batch.epoch, "timestep")
        return self.losses_at(batch, draw_timesteps(self.objective, draw), stream="noise")

    def losses_at(self, batch: Batch, timesteps: Float[Tensor, " batch"], *, stream: str) -> Losses:
        """Return the loss of each sample at given timesteps.

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
        """Return source and target latents in fp32, from the cache if the batch has them."""
        if batch.latents is not None:
            source, target = batch.latents
            return source.to(self.model.device, torch.float32), target.to(self.model.device, torch.float32)
        if batch.source is None or batch.target is None:
            raise AssertionError("a batch must have images or latents")
        return self.encode(batch.source), self.encode(batch.target)

    def encode(self, images: Images) -> Latents:
        """Encode images in [-1, 1] to latents in fp32: the mean of the posterior.

        Images are encoded one at a time, so that a latent does not depend on the batch and equals the cached one.
        """
        precise = replace(self.model, dtype=torch.float32)
        with torch.autocast(self.model.device.type, enabled=False):
            return torch.cat([precise.encode(image) for image in images.split(1)])

    def _pixel_loss(self, made: Latents, batch: Batch, mask: Tensor | None) -> Losses:
        """Compute the pixel loss on a random window of the predicted target, decoding only that window."""
        if batch.target is None:
            raise AssertionError("a pixel loss needs images")
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
    """Mean loss of a batch as a module: the forward pass that a multi-process strategy wraps."""

    def __init__(self, step: BridgeStep) -> None:
        super().__init__()
        self.denoiser = step.model.denoiser
        self.vae = step.model.vae
        self._step = step

    def forward(self, batch: Batch) -> Tensor:
        with self._step.autocast():
            return self._step.losses(batch).mean()


def decode(model: LBMModel, latents: Latents) -> Images:
    """Decode latents to images with gradients, in fp32 and not clamped. `LBMModel.decode` is for inference."""
    scale, shift = model.vae.config["scaling_factor"], model.vae.config.get("shift_factor") or 0.0
    with torch.autocast(model.device.type, enabled=False):
        images: Tensor = model.vae.decode((latents.float() / scale + shift).to(model.vae_dtype), return_dict=False)[0]
    return images.float()
