"""The objective of a run, and its random draws: timesteps and bridge noise, independently for each sample.

The objective uses the keys given in the training file, else those of the base's own configuration. Equations: Chadebec
et al., arXiv 2503.07535v2. The loss is L = L_LBM + weight * L_pixel (equation 7); its two terms are in `losses`.

Every draw of a sample comes from a generator seeded by the run's seed, the epoch and the sample. It therefore does not
depend on the batch, on the process or device, or on earlier draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from lbm_lora.errors import ConfigError
from lbm_lora.model import bridge
from lbm_lora.model.bridge_pipeline import standard_normal
from lbm_lora.model.config import LBMConfig
from lbm_lora.training.settings.learning_keys import ObjectiveSettings
from lbm_lora.training.settings.training_file import check_shares


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run minimises, with every value resolved.

    Attributes:
        pixel_loss_max_size: longest side of the crop for the pixel loss, in pixels.
        selected_timesteps: timesteps of custom_timesteps, each in (0, 1000]; empty for the other samplings.
        prob: their probabilities, which add up to 1.
        logit_mean, logit_std: parameters of the normal distribution of log_normal.
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
    """Return the objective of a run on a base.

    Args:
        config: settings of the run, such as `TrainConfig`.
        lbm: the base's own configuration.

    Raises:
        ConfigError: the run's timestep keys are incompatible with the base's.
    """
    sampling = config.timestep_sampling or lbm.timestep_sampling
    _check_sampling(config, sampling)
    timesteps, prob = _selected(config, lbm) if sampling == "custom_timesteps" else ((), ())
    return Objective(
        latent_loss_type=config.latent_loss_type or lbm.latent_loss_type,
        latent_loss_weight=config.latent_loss_weight,
        pixel_loss_type=config.pixel_loss_type or lbm.pixel_loss_type,
        pixel_loss_weight=config.pixel_loss_weight,
        pixel_loss_max_size=config.pixel_loss_max_size,
        timestep_sampling=sampling,
        selected_timesteps=timesteps,
        prob=prob,
        logit_mean=_first(config.logit_mean, lbm.logit_mean, 0.0),
        logit_std=_first(config.logit_std, lbm.logit_std, 1.0),
        bridge_noise_sigma=_first(config.bridge_noise_sigma, lbm.bridge_noise_sigma),
    )


def sample_generators(seed: int, epoch: int, sample_ids: Sequence[int], stream: str) -> list[torch.Generator]:
    """Return one CPU generator per sample.

    Args:
        seed: seed of the run.
        epoch: epoch, from 0.
        sample_ids: `Sample.index` of the batch's samples.
        stream: name of the draw, such as `noise`: draws with different names are independent.
    """
    # 32 bits: the CPU generator ignores the higher bits of a seed
    seeds = [xxhash.xxh32_intdigest(f"{stream}/{seed}/{epoch}/{sample}".encode()) for sample in sample_ids]
    return [torch.Generator().manual_seed(value) for value in seeds]


def draw_timesteps(objective: Objective, generators: Sequence[torch.Generator]) -> Float[Tensor, " batch"]:
    """Draw one timestep per sample, fp32 on the CPU, in (0, 1000]; 1000 is the source.

    uniform: the integers 1 to 1000. log_normal: 1000 - floor(1000 u), where u is the logistic function of a normal
    value, which is the paper's t (Esser et al., arXiv 2403.03206, equation 19). custom_timesteps: the selected
    timesteps with their probabilities (arXiv 2503.07535, section 3.4).

    Args:
        generators: CPU generators, one per sample.
    """
    draw = _DRAWS[objective.timestep_sampling]
    return torch.tensor([draw(objective, generator) for generator in generators], dtype=torch.float32)


def bridge_state(
    objective: Objective,
    source: bridge.Latent,
    target: bridge.Latent,
    timesteps: Float[Tensor, " batch"],
    generators: Sequence[torch.Generator],
) -> tuple[bridge.Latent, Float[Tensor, " batch"]]:
    """Return the points of the bridge that a step trains on, and their sigmas (arXiv 2503.07535, equation 1).

    Args:
        source: source latents; the result has their dtype and device.
        target: latents of the same shape.
        timesteps: one per sample, in (0, 1000].
        generators: CPU generators of the noise, one per sample.
    """
    sigma = timesteps.to(source.device, torch.float32) / bridge.TRAIN_TIMESTEPS
    noise = standard_normal(source, generators)
    return bridge.interpolate(source, target, sigma, noise, objective.bridge_noise_sigma), sigma


def _check_sampling(config: ObjectiveSettings, sampling: str) -> None:
    """Refuse keys of one sampling if the base uses another."""
    used = {"selected_timesteps": "custom_timesteps", "prob": "custom_timesteps"}
    used |= {"logit_mean": "log_normal", "logit_std": "log_normal"}
    for key, where in used.items():
        if getattr(config, key) is not None and sampling != where:
            raise ConfigError(
                f"{key} needs timestep_sampling {where}, but the base's own is {sampling}. "
                f"Add timestep_sampling: {where}, or remove {key}."
            )


def _selected(config: ObjectiveSettings, lbm: LBMConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return timesteps and their probabilities. New timesteps without probabilities are equally likely."""
    timesteps = config.selected_timesteps or lbm.selected_timesteps
    if not timesteps:
        raise ConfigError("timestep_sampling custom_timesteps needs selected_timesteps: the base's own has none.")
    inherited = lbm.prob if config.selected_timesteps is None else None
    prob = config.prob or inherited or (1 / len(timesteps),) * len(timesteps)
    try:
        check_shares("prob", prob, "selected_timesteps", len(timesteps))
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    return timesteps, prob


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _draw_uniform(_objective: Objective, generator: torch.Generator) -> float:
    return float(torch.randint(1, bridge.TRAIN_TIMESTEPS + 1, (), generator=generator))


def _draw_log_normal(objective: Objective, generator: torch.Generator) -> float:
    normal = torch.randn((), generator=generator, dtype=torch.float64)
    u = torch.sigmoid(objective.logit_mean + objective.logit_std * normal).item()
    return max(bridge.TRAIN_TIMESTEPS - float(int(bridge.TRAIN_TIMESTEPS * u)), 1.0)


def _draw_custom(objective: Objective, generator: torch.Generator) -> float:
    prob = torch.tensor(objective.prob, dtype=torch.float64)
    return objective.selected_timesteps[int(torch.multinomial(prob, 1, generator=generator))]


_DRAWS = {"uniform": _draw_uniform, "log_normal": _draw_log_normal, "custom_timesteps": _draw_custom}
