"""The inputs that a calibration keeps apart from its moments, to run LoRAs at.

Moments predict errors as if layers were independent, but in a network errors add up. A predictor therefore runs the
LoRA at a few inputs and corrects its prediction by the result. At inputs that are in the moments the result flatters:
it was up to 13 dB too good for inputs unlike them. Held points are of the same kind as those in the moments, but not
among them; shifted points are unlike them.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import torch

from lbm_lora.calibration.statistics import Statistics
from lbm_lora.configs.values import SMALLEST_SIZE
from lbm_lora.fidelity.answers import outputs_at
from lbm_lora.fidelity.checks import MOST_HELD, Check, CheckKind, held_out
from lbm_lora.fidelity.points import Latent, Point, bridge_points, generator, image_latent, image_noise
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import Schedule
from lbm_lora.progress import SILENT, Progress

_OTHER_NOISE = 1_000_000  # added to an image's index: bridge noise that no sum has seen


def with_checks(
    statistics: Statistics, model: LBMModel, images: Sequence[Path], progress: Progress = SILENT
) -> Statistics:
    """Return statistics with held and shifted points and the tuned model's outputs there.

    Args:
        model: the tuned model in fp32, as LoRAs are run.
        images: the images of the calibration.
    """
    origin = statistics.origin
    progress.start(0, "answering the check points")
    points: dict[CheckKind, list[Point]] = {
        "held": held_points(model, images, origin.schedule, size=origin.size, seed=origin.seed),
        "shifted": shifted_points(model, images, origin.schedule, size=origin.size, seed=origin.seed),
    }
    checks = [
        Check(kind=kind, point=point, wanted=outputs_at(model, [point]).float())
        for kind, found in points.items()
        for point in found
    ]
    return replace(statistics, checks=tuple(checks))


def held_points(
    model: LBMModel, images: Sequence[Path], schedule: Schedule, *, size: int | None, seed: int
) -> list[Point]:
    """Return up to `MOST_HELD` points of the held-out images, spread over them and the timesteps.

    Of fewer than four images none is held out: their points are those of the mirrored images with other bridge noise.
    """
    held = held_out(len(images))
    mirrored, sources = not held, held or list(range(len(images)))
    points: list[Point] = []
    pairs = sorted(spread(len(sources), len(schedule)))
    for image, chosen in groupby(pairs, key=lambda pair: pair[0]):
        wanted = tuple(schedule[index] for _, index in chosen)
        index = sources[image]
        latent = image_latent(model, images[index], size=size, mirrored=mirrored)
        points += bridge_points(model, latent, wanted, image_noise(seed, index + _OTHER_NOISE))
    return points


def shifted_points(
    model: LBMModel, images: Sequence[Path], schedule: Schedule, *, size: int | None, seed: int
) -> list[Point]:
    """Return points unlike the calibration's: of noise, of half the size, and at timesteps between the trained ones."""
    held = held_out(len(images)) or list(range(len(images)))
    noise = image_noise(seed, 2 * _OTHER_NOISE)
    first, last = schedule[0][0], schedule[-1][0]
    trained = tuple((timestep, 1.0) for timestep in dict.fromkeys((first, last)))
    latent = image_latent(model, images[held[0]], size=size)
    other = image_latent(model, images[held[-1]], size=max(SMALLEST_SIZE, (size or model.size) // 2), mirrored=True)
    points = list(bridge_points(model, _noise_latent(model, latent, seed), trained, noise))
    points += bridge_points(model, other, trained, noise)
    points += bridge_points(model, latent, _between(schedule), noise)
    return points


def spread(images: int, timesteps: int) -> list[tuple[int, int]]:
    """Return up to `MOST_HELD` distinct (image index, timestep index) pairs: images first, timesteps in turn."""
    count = min(images, MOST_HELD)
    chosen = [index * images // count for index in range(count)]
    turns = range(timesteps)
    pairs = [(image, (order + turn) % timesteps) for turn in turns for order, image in enumerate(chosen)]
    return pairs[:MOST_HELD]


def _between(schedule: Schedule) -> Schedule:
    """Return the middles of the widest two gaps between trained timesteps, and between 0 and the first."""
    edges = sorted({0.0, *(timestep for timestep, _ in schedule)})
    gaps = sorted(((high - low, (high + low) / 2) for low, high in pairwise(edges)), reverse=True)
    return tuple((middle, 1.0) for _, middle in gaps[:2])


@torch.no_grad()
def _noise_latent(model: LBMModel, like: Latent, seed: int) -> Latent:
    """Return the latent of an image of uniform noise, in the size of another one."""
    side = model.pixels_per_latent
    shape = (1, 3, like.shape[-2] * side, like.shape[-1] * side)
    return model.encode(torch.rand(shape, generator=generator(seed, "noise image")) * 2 - 1)
