"""The latent bridge: its schedule, its noise and one sampling step, as pure functions.

Equations: Chadebec et al., "LBM: Latent Bridge Matching for Fast Image-to-Image Translation", arXiv
2503.07535v2. The paper's time t runs from 0 (source) to 1 (target). As in LBM's checkpoints, `sigma` here
is 1 - t, so it runs from 1 (source) to 0 (target), and the timestep that the network sees is 1000 * sigma.

All functions compute in fp32 and return the dtype of their first latent.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

TRAIN_TIMESTEPS = 1000
"""The timestep of sigma 1."""

Latent = Float[Tensor, "batch channels height width"]
Denoise = Callable[[Tensor, Tensor], Tensor]
"""(latent [batch, channels, height, width], timestep [batch]) -> prediction, the shape of the latent."""


def sigmas(steps: int) -> Float[Tensor, " steps"]:
    """The sigma of each of `steps` denoiser calls, fp32: `steps` values from 1 down to 1/steps.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float()


def timesteps(steps: int) -> Float[Tensor, " steps"]:
    """The timestep of each of `steps` denoiser calls, fp32: 1000 * sigma (a scheduler shift of 1)."""
    return sigmas(steps) * TRAIN_TIMESTEPS


def interpolate(
    source: Latent,
    target: Latent,
    sigma: float | Float[Tensor, " batch"],
    noise: Latent,
    bridge_noise_sigma: float,
) -> Latent:
    """The point of the bridge at `sigma` (arXiv 2503.07535, equations 1 and 5).

    sigma * source + (1 - sigma) * target + bridge_noise_sigma * sqrt(sigma * (1 - sigma)) * noise; exactly
    `source` at sigma 1.

    Args:
        sigma: one value for all or one per sample, in [0, 1].
        noise: standard normal.
    """
    s = _per_sample(sigma, source)
    point = s * source.float() + (1 - s) * target.float() + bridge_noise_sigma * _spread(s) * noise.float()
    return point.to(source.dtype)


def velocity(source: Latent, target: Latent) -> Latent:
    """What the network is trained to predict: source - target.

    The noise-free form of equation 4 of arXiv 2503.07535 (with the sign of d/dsigma), as LBM's checkpoints use it.
    """
    return (source.float() - target.float()).to(source.dtype)


def predict_target(noisy: Latent, sigma: float | Float[Tensor, " batch"], prediction: Latent) -> Latent:
    """The target latent that a prediction at `sigma` stands for: noisy - sigma * prediction (equation 6)."""
    return (noisy.float() - _per_sample(sigma, noisy) * prediction.float()).to(noisy.dtype)


def sample(
    denoise: Denoise,
    source_latent: Latent,
    steps: int,
    bridge_noise_sigma: float,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Latent:
    """Follow the bridge from the source latent to a target latent by `steps` Euler steps.

    After every step but the last, noise of the bridge at the new sigma is added again. The noise of a
    sample depends on its own generator alone: not on its neighbours in the batch, nor on the device or
    dtype (it is drawn on the CPU in fp32).

    Args:
        denoise: the network; it gets latents in the dtype of `source_latent` and timesteps in fp32, one per sample.
        steps: denoiser calls, at least 1.
        generator: CPU generators, one per sample; or one, which gives each sample of the batch a seed in turn.

    Raises:
        ValueError: `steps` is below 1, or the number of generators is not the batch size.
    """
    levels = [*sigmas(steps).tolist(), 0.0]
    generators = one_per_sample(generator, len(source_latent))
    latent = source_latent.float()
    for sigma, after in pairwise(levels):
        timestep = torch.full((len(latent),), sigma * TRAIN_TIMESTEPS, dtype=torch.float32, device=latent.device)
        prediction = denoise(latent.to(source_latent.dtype), timestep).float()
        latent = latent + (after - sigma) * prediction
        if after > 0:
            latent = latent + bridge_noise_sigma * (after * (1 - after)) ** 0.5 * standard_normal(latent, generators)
    return latent.to(source_latent.dtype)


def one_per_sample(generator: torch.Generator | Sequence[torch.Generator], count: int) -> list[torch.Generator]:
    """CPU generators for a batch: those given, or one for each sample, seeded in turn by the one given.

    Sample i of a batch gets the same generator whatever the size of the batch.

    Raises:
        ValueError: the number of generators is not the batch size.
    """
    if isinstance(generator, torch.Generator):
        # 32 bits: the CPU generator ignores what a seed has above them.
        seeds = [int(torch.randint(2**32, (), generator=generator)) for _ in range(count)]
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators for a batch of {count}: give one, or one per sample")
    return list(generator)


def standard_normal(like: Latent, generators: Sequence[torch.Generator]) -> Latent:
    """fp32 noise of the shape and on the device of `like`, each sample from its own CPU generator."""
    rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(like.device)


def _per_sample(sigma: float | Tensor, latent: Tensor) -> Tensor:
    return torch.as_tensor(sigma, dtype=torch.float32, device=latent.device).reshape(-1, 1, 1, 1)


def _spread(sigma: Tensor) -> Tensor:
    return (sigma * (1 - sigma)).sqrt()
