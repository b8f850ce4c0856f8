"""What is measured: at which timesteps, with how many probes, in how much memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from lbm_lora.errors import ConfigError
from lbm_lora.factorize import DENSE_UP_TO, SKETCH_RANK
from lbm_lora.imaging.buckets import SMALLEST_SIZE
from lbm_lora.model.config import LBMConfig

FEW_IMAGES = 16
"""Below this many images, each gets more probes, and roots of the moments a larger ridge."""

_PROBES_OF_FEW = 4
_ALL_TIMESTEPS = (250.0, 500.0, 750.0, 1000.0)  # those that 1, 2 and 4 steps call

Schedule = tuple[tuple[float, float], ...]
"""(timestep, probability) pairs; the probabilities add up to 1."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How statistics are collected.

    Attributes:
        timesteps: some of those that the model was trained on; none: all of them.
        probes: random directions of the output for each image and timestep; None: 4 for fewer than 16 images, else 1.
        size: square root of the images' pixel budget; None: the model's own.
        seed: of bridge noise, probes and sketches.
        dense_up_to: the widest layer side whose moment is kept whole; 4 * width^2 bytes.
        sketch_rank: columns of the sketch that wider sides get.

    Raises:
        ConfigError: a value that cannot be.
    """

    timesteps: tuple[float, ...] = ()
    probes: int | None = None
    size: int | None = None
    seed: int = 0
    dense_up_to: int = DENSE_UP_TO
    sketch_rank: int = SKETCH_RANK

    def __post_init__(self) -> None:
        if self.probes is not None and self.probes < 1:
            raise ConfigError(f"{self.probes} probes measure no sensitivities. Use 1 or more.")
        if self.size is not None and self.size < SMALLEST_SIZE:
            raise ConfigError(f"size {self.size} is too small for the buckets. Use {SMALLEST_SIZE} or more.")
        if self.dense_up_to < 0 or self.sketch_rank < 0:
            raise ConfigError(
                f"dense_up_to {self.dense_up_to} and sketch_rank {self.sketch_rank} must not be negative."
            )

    def probes_for(self, images: int) -> int:
        """Probes for each image and timestep where there are so many images."""
        return self.probes or (_PROBES_OF_FEW if images < FEW_IMAGES else 1)


def schedule_of(config: LBMConfig, timesteps: Sequence[float] = ()) -> Schedule:
    """The timesteps to measure at, each with the probability that training drew it.

    Args:
        config: of the model.
        timesteps: some of the trained ones, whose probabilities are scaled to add up to 1; none: all of them. A model
            that was trained on all timesteps can be measured at any, which count the same; by default at those that
            1, 2 and 4 steps call.

    Raises:
        ConfigError: a timestep comes twice, was not trained, or lies outside (0, 1000].
    """
    if len(set(timesteps)) < len(timesteps):
        raise ConfigError(f"timesteps {_listed(timesteps)}: one comes twice. Give each once.")
    trained = _trained(config)
    chosen = {t: trained.get(t, 0.0) for t in timesteps or trained} if trained else dict.fromkeys(timesteps, 1.0)
    chosen = chosen or dict.fromkeys(_ALL_TIMESTEPS, 1.0)
    for timestep, probability in chosen.items():
        if trained and not probability:
            raise ConfigError(f"timestep {timestep:g} was not trained. Take some of {_listed(trained)}.")
        if not 0 < timestep <= 1000:
            raise ConfigError(f"timestep {timestep:g} cannot be: timesteps lie above 0 and up to 1000.")
    total = sum(chosen.values())
    return tuple((timestep, probability / total) for timestep, probability in chosen.items())


def _trained(config: LBMConfig) -> dict[float, float]:
    """Trained timestep -> probability; empty where training drew from all of them."""
    if config.timestep_sampling != "custom_timesteps" or not config.selected_timesteps or not config.prob:
        return {}
    pairs = zip(config.selected_timesteps, config.prob, strict=True)
    return {timestep: probability for timestep, probability in pairs if probability > 0}


def _listed(timesteps: Sequence[float] | dict[float, float]) -> str:
    return ", ".join(f"{timestep:g}" for timestep in timesteps)
