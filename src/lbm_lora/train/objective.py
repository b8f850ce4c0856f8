"""The objective of a run: the keys of its file where they are given, else those of the base's own configuration.

Equations: Chadebec et al., arXiv 2503.07535v2. Its loss is L = L_LBM + weight * L_pixel (equation 7); the draws it
needs are in `draws`, its two terms in `losses`.
"""

from dataclasses import dataclass
from typing import Literal

from lbm_lora.errors import ConfigError
from lbm_lora.model.config import LBMConfig
from lbm_lora.train.settings.objective import ObjectiveSettings
from lbm_lora.train.settings.section import check_shares


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run minimises, with nothing left open.

    Attributes:
        pixel_loss_max_size: longest side of the crop that the pixel loss compares, pixels.
        selected_timesteps: those of custom_timesteps, each in (0, 1000]; empty for the other samplings.
        prob: of each of them, together 1.
        logit_mean: of the normal value of log_normal.
        logit_std: of the same.
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
    """The objective of a run on a base.

    Args:
        config: the run's, `TrainConfig` for example.
        lbm: the base's own.

    Raises:
        ConfigError: the run's keys about timesteps do not go together with the base's.
    """
    sampling = config.timestep_sampling or lbm.timestep_sampling
    _check_sampling(config, sampling)
    timesteps, prob = _custom(config, lbm) if sampling == "custom_timesteps" else ((), ())
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


def _check_sampling(config: ObjectiveSettings, sampling: str) -> None:
    """Keys of one sampling, where the base's own is another."""
    used = {"selected_timesteps": "custom_timesteps", "prob": "custom_timesteps"}
    used |= {"logit_mean": "log_normal", "logit_std": "log_normal"}
    for key, where in used.items():
        if getattr(config, key) is not None and sampling != where:
            raise ConfigError(
                f"{key} is only used with timestep_sampling {where}, and the base's own is {sampling}. "
                f"Add timestep_sampling: {where}, or remove {key}."
            )


def _custom(config: ObjectiveSettings, lbm: LBMConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Timesteps and their probabilities. New timesteps without probabilities are all alike."""
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
