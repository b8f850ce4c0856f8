"""Translate one shard of images into a shard of results."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lbm_lora.atomic import atomic_path
from lbm_lora.errors import DataError, ImageError
from lbm_lora.imaging.encoded import decode_fitted_mask, decode_image
from lbm_lora.imaging.image_file import encode_image
from lbm_lora.inference.shards.shard_jobs import ShardJob, ShardKeys, check_source
from lbm_lora.inference.shards.shard_record import (
    ShardRecord,
    contents_of,
    is_result,
    read_record,
    write_record,
    write_settings,
)
from lbm_lora.late_files import expect, settle
from lbm_lora.ownership import RESULT
from lbm_lora.regular_file import version_of
from lbm_lora.result_watch import ResultWatch
from lbm_lora.shards.samples import Found, Skipped, UnreadableError
from lbm_lora.shards.tar import read_shard, shard_writer

Translate = Callable[[Image.Image, Image.Image | None], Image.Image]
"""Function of (source, mask if any) that returns the result, in the source's size."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Members to read and to write.

    Attributes:
        format: format of the results: png, jpg or webp.
        settings: what every image depends on; recorded in the folder with its first shard.
    """

    keys: ShardKeys
    format: str
    settings: Mapping[str, Any]


class Dropped(Exception):
    """The shard was dropped; nothing of it was written."""


def translate_shard(
    translate: Translate, job: ShardJob, task: ShardTask, *, take: Callable[[Skipped | None], None], watch: ResultWatch
) -> ShardRecord:
    """Translate every image of a shard into members `KEY.output.png` of its output, which appears once all are done.

    The same shard and settings give the same bytes.

    Args:
        take: called for every sample, with the sample if it is unusable. An exception from it drops the shard.
        watch: of all shards of this process.

    Raises:
        ImageError: a result is not finite.
        ConfigError: the folder holds results of other settings.
        DataError: the shard was replaced or removed meanwhile.
        OutputError: the output cannot be written.
    """
    skipped: list[Skipped] = []
    images = 0
    with atomic_path(job.output) as temporary:
        with temporary.open("wb") as file, shard_writer(file) as tar:
            for key, made in _results(translate, job, task):
                if isinstance(made, Skipped):
                    skipped.append(made)
                    take(made)
                else:
                    tar.write({"__key__": key, f"output.{task.format}": made})
                    images += 1
                    take(None)
        if version_of(job.source) != job.version:
            raise DataError(f"{job.source} was replaced while it was translated. Run the command again.")
        watch.before(job.output)
        if is_result(job.output):  # of another command, meanwhile
            check_source(job.output, read_record(job.output), job.digest, job.source)
        settle(job.output)  # another run's results may be there, and its record is replaced now
        write_settings(job.output.parent, task.settings)
        record = ShardRecord(source=job.digest, images=images, skipped=tuple(skipped), result=contents_of(temporary))
        write_record(record, job.output)
    watch.after(job.output)
    expect(job.output, None)  # with its record, it is known as ours
    return record


def _results(translate: Translate, job: ShardJob, task: ShardTask) -> Iterator[tuple[str, bytes | Skipped]]:
    """Yield every sample's name in the shard with its result, or the reason for having none."""
    for found in read_shard(job.source, job.name):
        key = found.key.removeprefix(f"{job.name}/")
        read = _read(found, task.keys)
        if isinstance(read, Skipped):
            yield key, read
        else:
            yield key, encode_image(translate(*read), f".{task.format}", mark=RESULT)


def _read(found: Found, keys: ShardKeys) -> tuple[Image.Image, Image.Image | None] | Skipped:
    """Return source and mask of a sample.

    Raises:
        DataError: the shard itself cannot be read: it is gone, or its disk is.
    """
    try:
        source_part, mask_part = keys.parts(found)
        source = decode_image(source_part.read(), found.key)
        mask = decode_fitted_mask(mask_part.read(), "the mask", source.size) if mask_part else None
    except UnreadableError as error:
        raise DataError(f"{error}. It was there before: run the command again to go on.") from None
    except ImageError as error:
        return Skipped(found.key, str(error))
    return source, mask
