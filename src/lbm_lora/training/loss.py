"""The loss of a batch: encode, draw timesteps and noise, predict, compare in latent space and on decoded pixels.

Equations: Chadebec et al., arXiv 2503.07535v2. The loss is L = L_LBM + weight * L_pixel (equation 7). A term is the
mean over the unmasked elements of its sample, and a batch's loss the mean over its samples. A sample therefore has the
same weight whatever the size of its mask (LBM itself divides by all elements), and processes with equally many samples
average to the gradient of one process that has them all.

Every draw of a sample comes from a generator seeded by the run's seed, the epoch and the sample. It therefore does not
depend on the batch, on the process or device, or on earlier draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import xxhash
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lbm_lora.errors import ConfigError
from lbm_lora.model import bridge
from lbm_lora.model.bridge_pipeline import standard_normal
from lbm_lora.model.build import LBMModel
from lbm_lora.model.config import LBMConfig
from lbm_lora.training.data.dataset import Batch, Images
from lbm_lora.training.data.latents import Latents
from lbm_lora.training.settings import SAMPLINGS, ObjectiveSettings
from lbm_lora.training.training_file import check_shares

Losses = Float[Tensor, " batch"]
Mask = Float[Tensor, "batch planes mask_height mask_width"]
"""White (1) counts in the loss, black (0) does not; only the first plane is read."""
Window = tuple[slice, slice]
"""Rows and columns of a crop, in pixels."""
Lpips = Callable[[Tensor, Tensor], Tensor]
"""Function of two batches of images [batch, 3, height, width] in [-1, 1] that returns one distance per sample, with any
number of axes of length 1."""

_WHITE = 0.5
"""Value from which a mask pixel counts."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run minimises: values of the keys of the same names, none of them None.

    `selected_timesteps`, each in (0, 1000], and `prob` are those of custom_timesteps; empty for the other samplings.
    """

    latent_loss_type: Literal["l2", "l1"]
    latent_loss_weight: float
    pixel_loss_type: Literal["l2", "l1", "lpips"]
    pixel_loss_weight: float
    pixel_loss_max_size: int
    timestep_sampling: Literal["uniform", "log_normal", "custom_timesteps"]
    selected_timesteps: tuple[float, ...]
    prob: tuple[float, ...]
    logit_mean: float
    logit_std: float
    bridge_noise_sigma: float


def objective_of(config: ObjectiveSettings, lbm: LBMConfig) -> Objective:
    """Return the objective of a run on a base: the keys of the training file, else the base's own configuration."""
    sampling = config.timestep_sampling or lbm.timestep_sampling
    for key, needed in SAMPLINGS.items():
        if getattr(config, key) is not None and sampling != needed:
            raise ConfigError(
                f"{key} needs timestep_sampling {needed}, but the base's own is {sampling}. "
                f"Add timestep_sampling: {needed}, or remove {key}."
            )
    values: dict[str, Any] = {}
    for field in fields(Objective):
        given = getattr(config, field.name)
        values[field.name] = getattr(lbm, field.name) if given is None else given
    if config.selected_timesteps and not config.prob:
        values["prob"] = None  # new timesteps without probabilities are equally likely
    timesteps = values["selected_timesteps"]
    if sampling != "custom_timesteps":
        values |= {"selected_timesteps": (), "prob": ()}
    elif not timesteps:
        raise ConfigError("timestep_sampling custom_timesteps needs selected_timesteps: the base's own has none.")
    else:
        values["prob"] = values["prob"] or (1 / len(timesteps),) * len(timesteps)
        try:
            check_shares("prob", values["prob"], "selected_timesteps", len(timesteps))
        except ValueError as error:
            raise ConfigError(f"{error}.") from None
    mean, std = (values[name] for name in ("logit_mean", "logit_std"))
    values |= {"logit_mean": 0.0 if mean is None else mean, "logit_std": 1.0 if std is None else std}
    return Objective(**values)


def sample_generators(seed: int, epoch: int, sample_ids: Sequence[int], stream: str) -> list[torch.Generator]:
    """Return one CPU generator per sample; draws with different names (`stream`) are independent."""
    # 32 bits: the CPU generator ignores the higher bits of a seed
    seeds = [xxhash.xxh32_intdigest(f"{stream}/{seed}/{epoch}/{sample}".encode()) for sample in sample_ids]
    return [torch.Generator().manual_seed(value) for value in seeds]


def draw_timesteps(objective: Objective, generators: Sequence[torch.Generator]) -> Float[Tensor, " batch"]:
    """Draw one timestep per sample, fp32 on the CPU, in (0, 1000]; 1000 is the source.

    uniform: the integers 1 to 1000. log_normal: 1000 - floor(1000 u), where u is the logistic function of a normal
    value, which is the paper's t (Esser et al., arXiv 2403.03206, equation 19). custom_timesteps: the selected
    timesteps with their probabilities (arXiv 2503.07535, section 3.4).
    """
    return torch.tensor([_draw_timestep(objective, generator) for generator in generators], dtype=torch.float32)


def _draw_timestep(objective: Objective, generator: torch.Generator) -> float:
    if objective.timestep_sampling == "uniform":
        return float(torch.randint(1, bridge.TRAIN_TIMESTEPS + 1, (), generator=generator))
    if objective.timestep_sampling == "log_normal":
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        u = torch.sigmoid(objective.logit_mean + objective.logit_std * normal).item()
        return max(bridge.TRAIN_TIMESTEPS - float(int(bridge.TRAIN_TIMESTEPS * u)), 1.0)
    prob = torch.tensor(objective.prob, dtype=torch.float64)
    return objective.selected_timesteps[int(torch.multinomial(prob, 1, generator=generator))]


def latent_loss(
    objective: Objective, prediction: bridge.Latent, velocity: bridge.Latent, mask: Mask | None = None
) -> Losses:
    """Return the distance of the network's prediction from its target, source - target (`bridge.velocity`), in fp32.

    This is equation 4 of arXiv 2503.07535 in the noise-free form with which LBM's checkpoints are trained: it compares
    the prediction itself, not the target latent that follows from it by equation 6, so all timesteps have equal weight.

    Args:
        mask: pixel mask. A latent pixel counts if all pixels under it do; a sample without any has loss 0.
    """
    error = _errors(objective.latent_loss_type, prediction, velocity)
    return _mean(error, None if mask is None else latent_mask(mask, *error.shape[-2:]))


def pixel_loss(
    objective: Objective, decoded: Images, target_image: Images, mask: Mask | None, lpips: Lpips | None = None
) -> Losses:
    """Return the distance of the decoded prediction, clamped to [-1, 1], from the target image (equation 7), in fp32.

    Args:
        mask: mask of the same pixels. LPIPS sees grey in both images where it is black.
    """
    made, wanted = decoded.float().clamp(-1, 1), target_image.float()
    valid = None if mask is None else mask[:, :1] >= _WHITE
    if objective.pixel_loss_type != "lpips":
        return _mean(_errors(objective.pixel_loss_type, made, wanted), valid)
    assert lpips is not None
    if valid is not None:
        made, wanted = made * valid, wanted * valid
    return lpips(made, wanted).float().reshape(len(made))


def crop_windows(
    height: int, width: int, size: int, generators: Sequence[torch.Generator], *, step: int
) -> list[Window]:
    """Draw a random window per sample, `size` pixels on a side or the full side if it is shorter.

    A window that crops starts and ends at multiples of `step`: `pixels_per_latent` if latents are cropped too.
    """
    return [(_side(height, size, step, generator), _side(width, size, step, generator)) for generator in generators]


def _side(length: int, size: int, step: int, generator: torch.Generator) -> slice:
    if length <= size:
        return slice(0, length)
    room = length // step - size // step
    start = int(torch.randint(room + 1, (), generator=generator)) * step
    return slice(start, start + size // step * step)


def crop(
    images: Float[Tensor, "batch channels height width"], windows: Sequence[Window], *, step: int = 1
) -> Float[Tensor, "batch channels rows columns"]:
    """Cut windows, all of one size, out of images or masks, or out of latents with `step` pixels per element."""
    return torch.stack(
        [
            image[:, rows.start // step : rows.stop // step, columns.start // step : columns.stop // step]
            for image, (rows, columns) in zip(images, windows, strict=True)
        ]
    )


def latent_mask(mask: Mask, rows: int, columns: int) -> Bool[Tensor, "batch 1 rows columns"]:
    """Return the latent pixels that count: those without a black mask pixel, as in LBM's training."""
    height, width = mask.shape[-2:]
    black = (mask[:, :1] < _WHITE).float()
    return torch.nn.functional.max_pool2d(black, (height // rows, width // columns)) == 0


def _errors(kind: str, made: Tensor, wanted: Tensor) -> Tensor:
    difference = made.float() - wanted.float()
    return difference.abs() if kind == "l1" else difference.square()


def _mean(errors: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return errors.flatten(1).mean(1)
    total = errors.where(valid, 0.0).flatten(1).sum(1)
    return total / (valid.flatten(1).sum(1) * errors.shape[1]).clamp(min=1)


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
        draw = self._generators(batch, "timestep")
        return self.losses_at(batch, draw_timesteps(self.objective, draw), stream="noise")

    def losses_at(self, batch: Batch, timesteps: Float[Tensor, " batch"], *, stream: str) -> Losses:
        """Return the loss of each sample at given timesteps; equal names of the noise have equal noise."""
        source, target = self.latents(batch)
        sigma = timesteps.to(source.device, torch.float32) / bridge.TRAIN_TIMESTEPS
        noise = standard_normal(source, self._generators(batch, stream))
        noisy = bridge.interpolate(source, target, sigma, noise, self.objective.bridge_noise_sigma)
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
        assert batch.source is not None
        assert batch.target is not None
        return self.encode(batch.source), self.encode(batch.target)

    def encode(self, images: Images) -> Latents:
        """Encode images in [-1, 1] to latents in fp32: the mean of the posterior.

        Images are encoded one at a time, so that a latent does not depend on the batch and equals the cached one.
        """
        precise = replace(self.model, dtype=torch.float32)
        with torch.autocast(self.model.device.type, enabled=False):
            return torch.cat([precise.encode(image) for image in images.split(1)])

    def _pixel_loss(self, made: Latents, batch: Batch, mask: Tensor | None) -> Losses:
        """Compute the pixel loss on a random window of `pixel_loss_max_size`, decoding only that window."""
        assert batch.target is not None, "a pixel loss needs images"
        step, size = self.model.pixels_per_latent, self.objective.pixel_loss_max_size
        draw = self._generators(batch, "crop")
        height, width = batch.target.shape[-2:]
        windows = crop_windows(height, width, size, draw, step=step)
        decoded = decode(self.model, crop(made, windows, step=step))
        target = crop(batch.target.to(decoded.device), windows)
        cropped_mask = None if mask is None else crop(mask, windows)
        return pixel_loss(self.objective, decoded, target, cropped_mask, self.lpips)

    def _generators(self, batch: Batch, stream: str) -> list[torch.Generator]:
        return sample_generators(self.seed, batch.epoch, batch.indices, stream)


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
