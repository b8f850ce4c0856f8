"""Prepare images for refinement: training and held-out images, as points with the tuned model's outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lbm_lora.errors import ConfigError, Option, listing, real_path
from lbm_lora.fidelity.answers import AnsweredPoint, answered
from lbm_lora.fidelity.checks import held_out
from lbm_lora.fidelity.points import bridge_points, image_latent, image_noise
from lbm_lora.imaging.paths import expand_sources
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import schedule_of
from lbm_lora.progress import Progress

_HELD_SHARE = 8  # one image in this many is held out
_HELD_MOST = 16


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """Training images and held-out images."""

    learnt: tuple[Path, ...]
    held: tuple[Path, ...]

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.learnt, *self.held)


def split_images(images: str | Sequence[str], held_images: str | Sequence[str] | None) -> ImageSplit:
    """Split the images of a command into training and held-out images.

    Args:
        images: files, folders or globs, one or several.
        held_images: held-out images, given the same way; by default one in 8 of the images, up to 16.
    """
    found = expand_sources(images)
    if held_images is not None:
        held = expand_sources(held_images)
        both = sorted({*map(real_path, found)} & {*map(real_path, held)})
        if both:
            raise ConfigError(
                f"{both[0]} is in ",
                Option("images"),
                " and in ",
                Option("held_images"),
                ". Held-out images must not be trained on.",
            )
        return ImageSplit(learnt=found, held=held)
    if len(found) < 2:
        raise ConfigError(
            Option("images"),
            f" is only one image, {listing(map(str, found))}. Give two or more, or add ",
            Option("held_images"),
            ".",
        )
    count = min(_HELD_MOST, max(1, len(found) // _HELD_SHARE))
    return _without(found, [index * len(found) // count for index in range(count)])


def _without(images: Sequence[Path], held: Sequence[int]) -> ImageSplit:
    learnt = tuple(path for index, path in enumerate(images) if index not in held)
    return ImageSplit(learnt=learnt, held=tuple(images[index] for index in held))


def calibration_split(images: Sequence[Path]) -> ImageSplit:
    """Split the images of a calibration: those that it held out of its moments stay held out.

    LoRAs are checked at them, and a check at images that the refit has learned from flatters it. Of fewer than four
    images none was held out; then one in 8 is.
    """
    held = held_out(len(images))
    return _without(images, held) if held else split_images([str(path) for path in images], None)


def answered_images(
    model: LBMModel,
    images: ImageSplit,
    *,
    timesteps: Sequence[float],
    size: int | None,
    seed: int,
    mirror: bool,
    progress: Progress,
) -> tuple[list[AnsweredPoint], list[AnsweredPoint]]:
    """Return training points and held-out points, with the tuned model's outputs.

    Args:
        timesteps: a subset of the trained timesteps; empty: all of them.
        size: square root of the pixel budget; by default the model's own.
        mirror: also train on mirrored images.
    """
    schedule = schedule_of(model.config, timesteps)
    views = [(path, mirrored) for path in images.learnt for mirrored in ((False, True) if mirror else (False,))]
    first = len(views)
    views += [(path, False) for path in images.held]
    progress.start(len(views), "running the tuned model")
    found: list[list[AnsweredPoint]] = []
    for index, (path, mirrored) in enumerate(views):
        with torch.no_grad():
            source = image_latent(model, path, size=size, mirrored=mirrored)
            found.append(answered(model, list(bridge_points(model, source, schedule, image_noise(seed, index)))))
        progress.advance()
    return [one for of in found[:first] for one in of], [one for of in found[first:] for one in of]


def shape_of(one: AnsweredPoint) -> tuple[int, ...]:
    """Return the shape of a point's state: points of one shape pass through a network together."""
    return tuple(one.point.state.shape)
