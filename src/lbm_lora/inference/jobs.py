"""Translate many images one after the other: the paths of each, and the failures."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lbm_lora.errors import ImageError, Option
from lbm_lora.files import Outputs, identity_of
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.masks import find_masks, read_mask
from lbm_lora.imaging.paths import expand_sources, plan_outputs, refuse_twins, sibling
from lbm_lora.inference.translate import TranslateSettings, translate_image
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.progress import Progress, warn

LARGE = 2.0
"""Factor above the model's working sides from which an image counts as large."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Paths of one image."""

    source: Path
    mask: Path | None
    output: Path
    comparison: Path | None
    """Path of the side-by-side image, if requested."""
    copy: Path | None
    """Path of the copy of the source, if requested."""
    keeps_output: bool = False
    """Whether the output that exists stays: only the side-by-side image is written."""

    @property
    def written(self) -> tuple[Path, ...]:
        """The result, and the side-by-side image."""
        return (self.output,) if self.comparison is None else (self.output, self.comparison)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Result, in the source's size."""

    source: Image.Image
    """The source as it was read."""
    image: Image.Image
    model_size: tuple[int, int]
    """(width, height) that the model worked on."""
    seconds: float
    """Seconds for reading, networks and stretching."""


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """Images to translate."""

    jobs: tuple[Job, ...]
    present: int
    """Images that are skipped because their outputs already exist."""


@dataclass(frozen=True, kw_only=True)
class FailedImage:
    """Source without a result, and the reason."""

    source: Path
    reason: str


class Failures:
    """Failures in a batch: each is recorded, and the batch continues without it.

    Args:
        total: images in the batch.
        is_fatal: whether the first failure ends the batch; the failure of a single image always does.
    """

    def __init__(self, total: int, *, is_fatal: bool = False) -> None:
        self.images: list[FailedImage] = []
        self.written = 0
        self._total = total
        self._is_fatal = is_fatal or total == 1

    def add(self, job: Job, error: ImageError) -> None:
        if self._is_fatal:
            raise ImageError(*error.args, self.so_far())
        self.images.append(FailedImage(source=job.source, reason=str(error)))

    def left(self, jobs: Sequence[Job]) -> list[Job]:
        failed = {image.source for image in self.images}
        return [job for job in jobs if job.source not in failed]

    def so_far(self) -> str:
        """Return a sentence for an error that ends the batch; empty for a single image."""
        return f" Before that, {self.written} of {self._total} images were written." if self._total > 1 else ""


def plan_jobs(
    source_image: str | Sequence[str],
    output_path: str,
    *,
    mask: str | Sequence[str] | None,
    compare: bool,
    files: Outputs,
    copy: bool = False,
    skip_existing: bool = False,
) -> JobPlan:
    """Return every path that will be read and written, checked against each other.

    Args:
        mask: one for all, or a folder with a mask of each image's name; several are one for each image.
        compare: whether to write a side-by-side image next to every output, as `NAME_compare`.
        copy: whether to write a copy of the source next to every output, as `NAME_input`; see `write_copy`.
        skip_existing: keep outputs that already exist, judged by name, and skip their images unless one lacks
            the side-by-side image of `compare`.
    """
    sources = expand_sources(source_image)
    masks = find_masks(mask, sources) if mask else (None,) * len(sources)
    outputs = plan_outputs(sources, output_path)
    jobs = [
        Job(
            source=source,
            mask=mask_path,
            output=output,
            comparison=sibling(output, "compare") if compare else None,
            copy=sibling(output, "input") if copy else None,
        )
        for source, mask_path, output in zip(sources, masks, outputs, strict=True)
    ]
    refuse_twins((path, job.source) for job in jobs for path in (*job.written, *([job.copy] if job.copy else [])))
    left: list[Job] = []
    present = 0
    files.reads(*sources, *masks)
    inputs = {identity_of(path) for path in (*sources, *masks) if path is not None}
    for job in jobs:
        keeps = skip_existing and job.output.exists() and inputs.isdisjoint(map(identity_of, job.written))
        if keeps and all(path.exists() for path in job.written):
            present += 1
            continue
        if not keeps:
            files.writes(job.output)
        if job.comparison is not None:
            files.writes(job.comparison, "the side-by-side image")
        if job.copy is not None and not job.copy.exists():  # an existing file may be kept, see `write_copy`
            files.writes(job.copy, "the copy of the source")
        elif keeps:  # an existing copy belongs to the output
            job = replace(job, copy=None)
        left.append(replace(job, keeps_output=keeps))
    files.check()
    return JobPlan(jobs=tuple(left), present=present)


def translations(
    pipe: LBMPipeline,
    jobs: Sequence[Job],
    settings: TranslateSettings,
    failures: Failures,
    progress: Progress,
    what: str,
) -> Iterator[tuple[Job, Translation]]:
    """Yield the result of every job in turn, keeping none; images that fail, now or before, are skipped."""
    left = failures.left(jobs)
    is_said = False
    progress.start(len(left), what)
    for job in left:
        try:
            made = translate_job(pipe, job, settings)
        except ImageError as error:
            failures.add(job, error)
        else:
            is_said = is_said or _warn_of_scale(job, made, pipe)
            yield job, made
        progress.advance()


def translate_job(pipe: LBMPipeline, job: Job, settings: TranslateSettings) -> Translation:
    """Read one image and its mask, and translate it."""
    begin = time.perf_counter()
    source = read_image(job.source)
    mask = read_mask(job.mask, source.size) if job.mask else None
    made = translate_image(pipe, source, settings, mask=mask)
    bucket = pipe.bucket(source.width, source.height, settings.size)
    return Translation(source=source, image=made, model_size=bucket, seconds=time.perf_counter() - begin)


def _warn_of_scale(job: Job, made: Translation, pipe: LBMPipeline) -> bool:
    (width, height), (model_width, model_height) = made.image.size, made.model_size
    scale = (width * height / (model_width * model_height)) ** 0.5
    if scale <= LARGE:
        return False
    warn(
        f"{job.source.name} has {width}x{height} pixels, and the model works on {model_width}x{model_height}: the "
        f"result is enlarged {scale:.1f} times and lacks fine detail. A larger ",
        Option("size"),
        f" keeps more, in more time (the model is made for {pipe.size}); or cut the image.",
    )
    return True
