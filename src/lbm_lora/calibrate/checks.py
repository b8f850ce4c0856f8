"""A few states of the calibration pictures that stay in the statistics: what a prediction is checked on.

The errors that the moments foresee are those of layers that know nothing of each other. In a network they add up:
on the bundled mini model, output errors come out 6 to 9 dB larger. So whoever predicts an error runs the LoRA on
these states, and corrects the prediction by what comes out. Between pictures the error of one LoRA varies by 5 dB,
between the timesteps of a picture by 3 dB, so each state is of another picture where there are enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lbm_lora.calibrate.settings import Schedule
from lbm_lora.calibrate.states import Latent, bridge_states, source_latent
from lbm_lora.model.build import LBMModel

CHECKS = 16
"""States that statistics hold, at most: 4 MB for images of a megapixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """A point of the bridge of one picture.

    Attributes:
        timestep: in (0, 1000].
        probability: of the timestep in training.
        state: fp32, on the CPU.
    """

    timestep: float
    probability: float
    state: Latent


def check_states(
    model: LBMModel, images: Sequence[Path], schedule: Schedule, *, size: int | None, seed: int
) -> tuple[Check, ...]:
    """States that the calibration itself has measured: up to `CHECKS`, of as many pictures and timesteps as there are.

    Args:
        size, seed: of the calibration.
    """
    checks: list[Check] = []
    for image, chosen in groupby(sorted(spread(len(images), len(schedule))), key=lambda pair: pair[0]):
        wanted = {schedule[index][0] for _, index in chosen}
        source = source_latent(model, images[image], size=size)
        for timestep, probability, state in bridge_states(model, source, schedule, seed=seed, image=image):
            if timestep in wanted:
                checks.append(Check(timestep=timestep, probability=probability, state=state.float().cpu()))
    return tuple(checks)


def spread(images: int, timesteps: int) -> list[tuple[int, int]]:
    """Up to `CHECKS` different pairs (index of a picture, index of a timestep): pictures first, timesteps in turn."""
    count = min(images, CHECKS)
    chosen = [index * images // count for index in range(count)]
    turns = range(timesteps)
    pairs = [(image, (order + turn) % timesteps) for turn in turns for order, image in enumerate(chosen)]
    return pairs[:CHECKS]
