"""Many images: what each is read from and written to, and translating them one after the other."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lbm_lora.imaging.buckets import nearest_bucket
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.masks import find_masks, read_mask
from lbm_lora.imaging.paths import expand_sources, guard_outputs, plan_outputs, sibling
from lbm_lora.inference.translate import TranslateSettings, translate_image
from lbm_lora.model.build import LBMModel
from lbm_lora.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """The paths of one image."""

    source: Path
    mask: Path | None
    output: Path
    comparison: Path | None
    """The side-by-side image, where one is asked for."""
    copy: Path | None
    """The copy of the source, where one is asked for."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A result in the source's size."""

    image: Image.Image
    model_size: tuple[int, int]
    """(width, height) that the model worked on."""
    seconds: float
    """Reading, networks and stretching."""


def plan_jobs(
    source_image: str, output_path: str, *, mask: str | None, compare: bool, inputs: Iterable[Path], copy: bool = False
) -> list[Job]:
    """Every path that will be read and written, checked against each other.

    Args:
        source_image: image, folder or glob.
        output_path: file, or folder.
        mask: one for all, or a folder with one of each image's name.
        compare: whether a side-by-side image goes beside every output, as `NAME_compare`.
        inputs: further files that must not be overwritten.
        copy: whether a copy of the source goes beside every output, as `NAME_input`; see `write_copy`.

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
        Job(
            source=source,
            mask=mask_path,
            output=output,
            comparison=comparison,
            copy=sibling(output, "input") if copy else None,
        )
        for source, mask_path, output, comparison in zip(sources, masks, outputs, comparisons, strict=True)
    ]


def translations(
    model: LBMModel, jobs: Sequence[Job], settings: TranslateSettings, progress: Progress, what: str
) -> Iterator[Translation]:
    """The result of every job in turn, none kept; `what` describes the phase."""
    progress.start(len(jobs), what)
    for job in jobs:
        yield translate_job(model, job, settings)
        progress.advance()


def translate_job(model: LBMModel, job: Job, settings: TranslateSettings) -> Translation:
    """Read one image and its mask, and translate it.

    Raises:
        ImageError: one of them cannot be read or does not fit, or the result is not finite.
    """
    begin = time.perf_counter()
    source = read_image(job.source)
    mask = read_mask(job.mask, source.size) if job.mask else None
    made = translate_image(model, source, settings, mask=mask)
    bucket = nearest_bucket(source.width, source.height, settings.size or model.size, step=model.pixels_per_latent)
    return Translation(image=made, model_size=bucket, seconds=time.perf_counter() - begin)
