"""Many pictures: what each is read from and written to, and translating them one after the other."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lbm_lora.imaging.files import read_image
from lbm_lora.imaging.masks import find_masks, read_mask
from lbm_lora.imaging.paths import expand_sources, guard_outputs, plan_outputs, sibling
from lbm_lora.infer.pipeline import to_model_size, to_source_size, translate
from lbm_lora.model.build import LBMModel
from lbm_lora.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """The paths of one picture."""

    source: Path
    mask: Path | None
    output: Path
    comparison: Path | None
    """The side-by-side picture, where one is asked for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pictures are translated; see `translate_image`."""

    steps: int = 1
    seed: int = 0
    size: int | None = None
    sample_posterior: bool = False
    tiled: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A result in the source's size."""

    picture: Image.Image
    model_size: tuple[int, int]
    """(width, height) that the model worked on."""
    seconds: float
    """Reading, networks and stretching."""


def plan_jobs(
    source_image: str, output_path: str, *, mask: str | None, compare: bool, inputs: Iterable[Path]
) -> list[Job]:
    """Every path that will be read and written, checked against each other.

    Args:
        source_image: picture, folder or glob.
        output_path: file, or folder.
        mask: one for all, or a folder with one of each picture's name.
        compare: whether a side-by-side picture goes beside every output, as `NAME_compare`.
        inputs: further files that must not be overwritten.

    Raises:
        ImageError: a source or a mask is not there.
        OutputError: an output cannot be written as asked, or is an input.
    """
    sources = expand_sources(source_image)
    masks = find_masks(mask, sources) if mask else (None,) * len(sources)
    outputs = plan_outputs(sources, output_path)
    comparisons = [sibling(output, "compare") if compare else None for output in outputs]
    written = [*outputs, *(path for path in comparisons if path)]
    guard_outputs(written, [*sources, *(path for path in masks if path), *inputs])
    return [
        Job(source=source, mask=mask_path, output=output, comparison=comparison)
        for source, mask_path, output, comparison in zip(sources, masks, outputs, comparisons, strict=True)
    ]


def translations(
    model: LBMModel, jobs: Sequence[Job], settings: Settings, progress: Progress, what: str
) -> Iterator[Translation]:
    """The result of every job in turn, none kept; `what` describes the phase."""
    progress.start(len(jobs), what)
    for job in jobs:
        yield translate_job(model, job, settings)
        progress.advance()


def translate_job(model: LBMModel, job: Job, settings: Settings) -> Translation:
    """Read one picture and its mask, and translate it.

    Raises:
        ImageError: one of them cannot be read or does not fit, or the result is not finite.
    """
    begin = time.perf_counter()
    source = read_image(job.source)
    mask = read_mask(job.mask, source.size) if job.mask else None
    picture, size = translate_read(model, source, mask, settings)
    return Translation(picture=picture, model_size=size, seconds=time.perf_counter() - begin)


def translate_read(
    model: LBMModel, source: Image.Image, mask: Image.Image | None, settings: Settings
) -> tuple[Image.Image, tuple[int, int]]:
    """Translate a picture that is read already; also the (width, height) that the model worked on.

    Raises:
        ImageError: the result is not finite.
    """
    images = to_model_size(model, source, size=settings.size)
    result = translate(
        model,
        images,
        steps=settings.steps,
        seed=settings.seed,
        sample_posterior=settings.sample_posterior,
        tiled=settings.tiled,
    )
    return to_source_size(result, source, mask=mask), (images.shape[-1], images.shape[-2])
