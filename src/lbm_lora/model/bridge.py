"""The latent bridge: its points, and what the network is trained to predict there, as pure functions.

How it is followed from source to target: `follow_bridge` in `bridge_pipeline.py`.

Equations: Chadebec et al., "LBM: Latent Bridge Matching for Fast Image-to-Image Translation", arXiv
2503.07535v2. The paper's time t runs from 0 (source) to 1 (target). As in LBM's checkpoints, `sigma` here
is 1 - t, so it runs from 1 (source) to 0 (target), and the timestep that the network sees is 1000 * sigma.

All functions compute in fp32 and return the dtype of their first latent.
"""

import torch
from jaxtyping import Float
from torch import Tensor

TRAIN_TIMESTEPS = 1000
"""Timestep of sigma 1."""

Latent = Float[Tensor, "batch channels height width"]


def interpolate(
    source: Latent,
    target: Latent,
    sigma: float | Float[Tensor, " batch"],
    noise: Latent,
    bridge_noise_sigma: float,
) -> Latent:
    """Return the point of the bridge at `sigma` (arXiv 2503.07535, equations 1 and 5).

    sigma * source + (1 - sigma) * target + bridge_noise_sigma * sqrt(sigma * (1 - sigma)) * noise; exactly
    `source` at sigma 1.

    Args:
        sigma: one value for all or one per sample, in [0, 1].
        noise: standard normal noise.
    """
    s = _per_sample(sigma, source)
    point = s * source.float() + (1 - s) * target.float() + bridge_noise_sigma * (s * (1 - s)).sqrt() * noise.float()
    return point.to(source.dtype)


def velocity(source: Latent, target: Latent) -> Latent:
    """Return what the network is trained to predict: source - target.

    This is the noise-free form of equation 4 of arXiv 2503.07535 (with the sign of d/dsigma), as in LBM's checkpoints.
    """
    return (source.float() - target.float()).to(source.dtype)


def predict_target(noisy: Latent, sigma: float | Float[Tensor, " batch"], prediction: Latent) -> Latent:
    """Return the target latent that a prediction at `sigma` implies: noisy - sigma * prediction (equation 6)."""
    return (noisy.float() - _per_sample(sigma, noisy) * prediction.float()).to(noisy.dtype)


def _per_sample(sigma: float | Tensor, latent: Tensor) -> Tensor:
    return torch.as_tensor(sigma, dtype=torch.float32, device=latent.device).reshape(-1, 1, 1, 1)
