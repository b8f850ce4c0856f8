"""The timesteps that a model was trained on, their probabilities, and the numbers of steps that stay on them.

Chadebec et al., arXiv 2503.07535v2, section 3.4: training draws from a few timesteps, and inference with a number of
steps that calls the denoiser at others leaves the training distribution.
"""

from collections.abc import Iterable, Sequence

from lbm_lora.errors import ConfigError
from lbm_lora.model.bridge import TRAIN_TIMESTEPS
from lbm_lora.model.config import LBMConfig
from lbm_lora.progress import warn

Schedule = tuple[tuple[float, float], ...]
"""(timestep, probability) pairs: timesteps in (0, 1000], probabilities that add up to 1."""

STEP_COUNTS = (1, 2, 4)
"""Numbers of steps for a model trained on all timesteps."""

_CALLED = (250.0, 500.0, 750.0, 1000.0)  # the timesteps that 1, 2 and 4 steps call


def schedule_of(config: LBMConfig, timesteps: Sequence[float] = ()) -> Schedule:
    """Return the timesteps to measure a model at, each with its probability in training.

    Args:
        timesteps: a subset of the trained timesteps, whose probabilities are scaled to add up to 1; empty: all of
            them. A model trained on all timesteps can be measured at any, with equal weight; by default at those that
            1, 2 and 4 steps call.
    """
    if len(set(timesteps)) < len(timesteps):
        raise ConfigError(f"timesteps must not repeat, got {_listed(timesteps)}.")
    trained = _trained(config)
    chosen = {t: trained.get(t, 0.0) for t in timesteps or trained} if trained else dict.fromkeys(timesteps, 1.0)
    chosen = chosen or dict.fromkeys(_CALLED, 1.0)
    for timestep, probability in chosen.items():
        if trained and not probability:
            raise ConfigError(f"timestep {timestep:g} was not trained. Choose from {_listed(trained)}.")
        if not 0 < timestep <= TRAIN_TIMESTEPS:
            raise ConfigError(f"timesteps must be above 0 and at most {TRAIN_TIMESTEPS}, got {timestep:g}.")
    total = sum(chosen.values())
    return tuple((timestep, probability / total) for timestep, probability in chosen.items())


def from_source(schedule: Schedule) -> Schedule:
    """Return a schedule in the order of inference: from the source, timestep 1000, down."""
    return tuple(sorted(schedule, reverse=True))


def trained_step_counts(selected_timesteps: Sequence[int | float]) -> tuple[int, ...]:
    """Return the numbers of steps that call the denoiser only at trained timesteps.

    For the timesteps 250, 500, 750, 1000 of the published models these are 1, 2 and 4.
    """
    trained = set(selected_timesteps)

    def stays(steps: int) -> bool:
        return all(any(t * steps == TRAIN_TIMESTEPS * k for t in trained) for k in range(1, steps + 1))

    return tuple(steps for steps in range(1, len(trained) + 1) if stays(steps))


def step_counts(config: LBMConfig) -> tuple[int, ...] | None:
    """Return the numbers of steps that stay on a model's trained timesteps; None if all timesteps were trained."""
    if config.timestep_sampling != "custom_timesteps" or config.selected_timesteps is None:
        return None
    return trained_step_counts(config.selected_timesteps)


def check_steps(config: LBMConfig, steps: int) -> None:
    """Warn if a number of steps calls the denoiser at untrained timesteps."""
    check_step_count(steps, step_counts(config))


def check_step_count(steps: int, good: Sequence[int] | None, *, what: str = "steps") -> None:
    """Warn of a number of steps that is none of those that stay on the trained timesteps."""
    if steps < 1:
        raise ConfigError(f"{what} must be 1 or more, got {steps}.")
    if good is not None and steps not in good:
        names = ", ".join(str(count) for count in good) or "none"
        warn(f"{steps} steps call the denoiser at untrained timesteps. Trained numbers of steps: {names}.")


def _trained(config: LBMConfig) -> dict[float, float]:
    """Return trained timestep -> probability; empty if training drew from all timesteps."""
    if config.timestep_sampling != "custom_timesteps" or not config.selected_timesteps or not config.prob:
        return {}
    pairs = zip(config.selected_timesteps, config.prob, strict=True)
    return {timestep: probability for timestep, probability in pairs if probability > 0}


def _listed(timesteps: Iterable[float]) -> str:
    return ", ".join(f"{timestep:g}" for timestep in timesteps)
