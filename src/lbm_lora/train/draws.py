"""What chance decides in a training step: timesteps and bridge noise, of each sample alone.

Every draw of a sample comes from a generator that only the run's seed, the epoch and the sample decide. So it
depends neither on the batch that the sample is in, nor on the process or the device that computes it, nor on what
was drawn before.
"""

from collections.abc import Sequence

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from lbm_lora.model import bridge
from lbm_lora.train.objective import Objective


def sample_generators(seed: int, epoch: int, sample_ids: Sequence[int], stream: str) -> list[torch.Generator]:
    """One CPU generator per sample.

    Args:
        seed: of the run.
        epoch: counts from 0.
        sample_ids: of a batch's samples, `Sample.index`.
        stream: what is drawn, `noise` for example: draws of different names have nothing to do with each other.
    """
    # 32 bits: the CPU generator ignores what a seed has above them
    seeds = [xxhash.xxh32_intdigest(f"{stream}/{seed}/{epoch}/{sample}".encode()) for sample in sample_ids]
    return [torch.Generator().manual_seed(value) for value in seeds]


def draw_timesteps(objective: Objective, generators: Sequence[torch.Generator]) -> Float[Tensor, " batch"]:
    """One timestep per sample, fp32 on the CPU, in (0, 1000]; 1000 is the source.

    uniform: the whole numbers 1 to 1000. log_normal: 1000 - floor(1000 u), where the logistic function takes a
    normal value to u, which is the paper's t (Esser et al., arXiv 2403.03206, equation 19). custom_timesteps:
    the selected ones by their probabilities (arXiv 2503.07535, section 3.4).

    Args:
        generators: CPU generators, one per sample.
    """
    draw = {"uniform": _uniform, "log_normal": _log_normal, "custom_timesteps": _custom}[objective.timestep_sampling]
    return torch.tensor([draw(objective, generator) for generator in generators], dtype=torch.float32)


def bridge_state(
    objective: Objective,
    source: bridge.Latent,
    target: bridge.Latent,
    timesteps: Float[Tensor, " batch"],
    generators: Sequence[torch.Generator],
) -> tuple[bridge.Latent, Float[Tensor, " batch"]]:
    """The points of the bridge that a step trains on, and their sigmas (arXiv 2503.07535, equation 1).

    Args:
        source: latents; the result has their dtype and device.
        target: latents of the same shape.
        timesteps: one per sample, in (0, 1000].
        generators: CPU generators of the noise, one per sample.
    """
    sigma = timesteps.to(source.device, torch.float32) / bridge.TRAIN_TIMESTEPS
    noise = bridge.standard_normal(source, generators)
    return bridge.interpolate(source, target, sigma, noise, objective.bridge_noise_sigma), sigma


def _uniform(_objective: Objective, generator: torch.Generator) -> float:
    return float(torch.randint(1, bridge.TRAIN_TIMESTEPS + 1, (), generator=generator))


def _log_normal(objective: Objective, generator: torch.Generator) -> float:
    normal = torch.randn((), generator=generator, dtype=torch.float64)
    u = torch.sigmoid(objective.logit_mean + objective.logit_std * normal).item()
    return max(bridge.TRAIN_TIMESTEPS - float(int(bridge.TRAIN_TIMESTEPS * u)), 1.0)


def _custom(objective: Objective, generator: torch.Generator) -> float:
    prob = torch.tensor(objective.prob, dtype=torch.float64)
    return objective.selected_timesteps[int(torch.multinomial(prob, 1, generator=generator))]
