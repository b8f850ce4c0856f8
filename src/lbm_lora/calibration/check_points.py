"""The inputs that a calibration keeps apart from its moments, to run LoRAs at.

Moments predict errors as if layers were independent, but in a network errors add up. A predictor therefore runs the
LoRA at a few inputs and corrects its prediction by the result. At inputs that are in the moments the result flatters:
it was up to 13 dB too good for inputs unlike them. Held points are of the same kind as those in the moments, but not
among them; shifted points are unlike them, each in one way: see `shifted_points`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import torch

from lbm_lora.calibration.statistics import Statistics
from lbm_lora.choices import SMALLEST_SIZE
from lbm_lora.fidelity.answers import outputs_at
from lbm_lora.fidelity.checks import MOST_HELD, Check, CheckKind, held_out
from lbm_lora.fidelity.points import Latent, Point, bridge_points, generator, image_latent, image_noise
from lbm_lora.imaging.buckets import nearest_bucket
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import Schedule
from lbm_lora.progress import SILENT, Progress

_OTHER_NOISE = 1_000_000  # added to an image's index: bridge noise that no sum has seen
_LARGER, _SMALLER = 1.5, 0.5**0.5  # sides of larger and smaller images, of the calibration's
_FORMATS = ((3, 2), (2, 3))  # width and height of images with other content, in proportion


def with_checks(
    statistics: Statistics, model: LBMModel, images: Sequence[Path], progress: Progress = SILENT
) -> Statistics:
    """Return statistics with held and shifted points and the tuned model's outputs there.

    Args:
        model: the tuned model in fp32, as LoRAs are run.
    """
    origin = statistics.origin
    progress.start(0, "answering the check points")
    held = held_points(model, images, origin.schedule, size=origin.size, seed=origin.seed)
    shifted = shifted_points(model, images, origin.schedule, size=origin.size, seed=origin.seed)
    found: list[tuple[CheckKind, Point]] = [*(("held", point) for point in held), *shifted]
    checks = [Check(kind=kind, point=point, wanted=outputs_at(model, [point]).float()) for kind, point in found]
    return replace(statistics, checks=tuple(checks))


def held_points(
    model: LBMModel, images: Sequence[Path], schedule: Schedule, *, size: int | None, seed: int
) -> list[Point]:
    """Return up to `MOST_HELD` points of the held-out images, spread over them and the timesteps.

    Of fewer than four images none is held out: their points are those of the mirrored images with other bridge noise.
    """
    mirrored, chosen = not held_out(len(images)), _chosen(images, schedule)
    points: list[Point] = []
    for index, timesteps in groupby(sorted(chosen), key=lambda pair: pair[0]):
        latent = image_latent(model, images[index], size=size, mirrored=mirrored)
        wanted = tuple(schedule[timestep] for _, timestep in timesteps)
        points += bridge_points(model, latent, wanted, image_noise(seed, index + _OTHER_NOISE))
    return points


def shifted_points(
    model: LBMModel, images: Sequence[Path], schedule: Schedule, *, size: int | None, seed: int
) -> Iterator[tuple[CheckKind, Point]]:
    """Yield points unlike the calibration's, with the kind of shift.

    - `content`: of noise, in landscape and in portrait format. Errors there are larger than at other images that can be
      made, such as discs or scrambled and inverted ones, and after a calibration on renders as large as at photos;
    - `larger`, `smaller`: of the held images, with 2.25 times and with half the pixels, at timesteps of held points, so
      that only the size differs. Errors differ more between images than by size, so that each image counts;
    - `timesteps`: between the trained ones.

    There are half as many of `content` as held points; half as many of each size, but one of each held image at least;
    of `timesteps` two at most.
    """
    chosen, side = _chosen(images, schedule), size or model.size
    half = max(1, len(chosen) // 2)

    def resized(index: int, share: float) -> Latent:
        within = max(SMALLEST_SIZE, round(share * side), -(-model.size // 4))  # what the model is made for
        return image_latent(model, images[index], size=min(within, 2 * model.size))

    for index in range(half):
        turn = index + index // len(schedule)  # each format at every timestep
        latent, noise = _noise_latent(model, index, side, seed), image_noise(seed, index + 2 * _OTHER_NOISE)
        for point in bridge_points(model, latent, (schedule[turn % len(schedule)],), noise):
            yield "content", point
    sizes: tuple[tuple[CheckKind, float], ...] = (("larger", _LARGER), ("smaller", _SMALLER))
    for index, timestep in sorted(chosen[: max(half, len({image for image, _ in chosen}))]):
        for kind, share in sizes:
            noise = image_noise(seed, index + _OTHER_NOISE)
            for point in bridge_points(model, resized(index, share), (schedule[timestep],), noise):
                yield kind, point
    first, _ = chosen[0]
    noise = image_noise(seed, first + _OTHER_NOISE)
    for point in bridge_points(model, resized(first, 1.0), _between(schedule)[:half], noise):
        yield "timesteps", point


def _chosen(images: Sequence[Path], schedule: Schedule) -> list[tuple[int, int]]:
    """Return image and timestep of each held point, as indices, in the order of `spread`."""
    sources = held_out(len(images)) or range(len(images))
    return [(sources[image], timestep) for image, timestep in spread(len(sources), len(schedule))]


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
def _noise_latent(model: LBMModel, index: int, side: int, seed: int) -> Latent:
    """Return the latent of an image of independent uniform values; every second one is in portrait format."""
    width, height = nearest_bucket(*_FORMATS[index % 2], side, step=model.pixels_per_latent)
    return model.encode(torch.rand((1, 3, height, width), generator=generator(seed, "noise image", index)) * 2 - 1)
