"""Translate images of WebDataset shards into shards of the same names, by one or several processes.

infer.json     the settings that every image in the folder depends on; written before the first NAME.tar appears
NAME.tar       results
NAME.tar.json  the source shard, its unusable samples, and what tells the results from any other file; written before
               NAME.tar appears

So a record without its NAME.tar, or beside another one, means nothing: those results have yet to be made. A run goes on
with the same settings only.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import torch
import xxhash
from lightning.fabric import Fabric
from PIL import Image
from torch import distributed

from lbm_lora.errors import ConfigError, DataError, ImageError, OutputError, listing
from lbm_lora.files import Outputs, atomic_path, check_regular, write_text
from lbm_lora.imaging.encoded import decode_image, decode_mask
from lbm_lora.imaging.image_file import RESULT, encode_image
from lbm_lora.progress import SILENT, Progress
from lbm_lora.runtime import StopRequest
from lbm_lora.shards.fetch import local_shards, path_of
from lbm_lora.shards.samples import Found, Part, Skipped, UnreadableError, complaint, ends_digest
from lbm_lora.shards.tar import expand_shards, read_shard, shard_writer
from lbm_lora.text import parse_json, read_text

SETTINGS = "infer.json"
"""Written once; a folder with another one is refused."""

_COMPRESSED = (".gz", ".bz2", ".xz")
_PATIENCE = timedelta(days=30)  # that a finished process waits for the others

Value = TypeVar("Value")
Translate = Callable[[Image.Image, Image.Image | None], Image.Image]
"""Function of (source, mask if any) that returns the result, in the source's size."""


@dataclass(frozen=True, kw_only=True)
class ShardKeys:
    """Members of a sample that are read; see `Found.pick`."""

    source: str = "source.jpg"
    mask: str | None = None

    def parts(self, found: Found) -> tuple[Part, Part | None]:
        """Return the source and the mask of a sample."""
        if found.problem:
            raise ImageError(found.problem)
        return found.pick(self.source), found.pick(self.mask) if self.mask else None


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Members to read and to write, and what every image depends on: recorded in the folder with its first shard."""

    keys: ShardKeys
    format: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Record of an output shard: the digest of its source, its images, the samples that could not be used.

    `result` is from `contents_of`; None in a record of an earlier version.
    """

    source: str
    images: int
    skipped: tuple[Skipped, ...]
    result: Mapping[str, int | str] | None


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Shard to translate, with its output.

    Attributes:
        name: name of the output; it precedes the keys of its samples in messages.
        source: a local, uncompressed file.
        digest: digest of the shard's members: names, positions, sizes, and both ends of their contents.
        skipped: unusable ones of its samples, as far as headers tell.
        record: record of the output, if it is finished.
    """

    name: str
    source: Path
    output: Path
    digest: str
    samples: int
    skipped: tuple[Skipped, ...]
    record: ShardRecord | None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Work done by one process or by all."""

    records: Mapping[str, ShardRecord]
    stopped_by: str
    error: str = ""


class Dropped(Exception):
    """The shard was dropped; nothing of it was written."""


def plan_shards(
    patterns: Sequence[str],
    folder: Path,
    keys: ShardKeys,
    *,
    cache_dir: Path | None,
    files: Outputs,
    progress: Progress = SILENT,
) -> list[ShardJob]:
    """Return every shard in order, fetched if it is remote, with its output in `folder`."""
    if folder.is_file():
        raise OutputError(f"{folder} receives shards, so it must be a folder.")
    shards = expand_shards(patterns)
    names = [_output_name(shard) for shard in shards]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice:
        both = " and ".join(shard for shard, name in zip(shards, names, strict=True) if name == twice)
        raise OutputError(f"{both} would all be written to {folder / twice}. Translate them into separate folders.")
    paths = local_shards(shards, cache_dir=cache_dir, allow_pipe=False, progress=progress)
    files.reads(*paths, *map(path_of, shards))  # of a compressed one, the unpacked copy and the given file
    records = {name: finished_record(folder / name) for name in names}
    for name, record in records.items():
        if record is None:
            files.writes(folder / name)
            if _read_record(record_path(folder / name)) is None:
                files.writes(record_path(folder / name), "the record")
    files.check()
    progress.start(len(paths), "reading shards")
    jobs: list[ShardJob] = []
    for path, (name, record) in zip(paths, records.items(), strict=True):
        jobs.append(_job(path, folder / name, keys, record))
        progress.advance()
    return jobs


def _output_name(shard: str) -> str:
    """Return the file name of a shard, without the extension of its compression."""
    if shard.startswith("pipe:"):
        raise ConfigError(f"the shard '{shard}' has no file name to name its results after. Give a path or a URL.")
    name = Path(urlparse(shard).path if "://" in shard else shard).name
    suffix = next((suffix for suffix in _COMPRESSED if name.endswith(suffix)), "")
    name = name.removesuffix(suffix)
    if record_path(Path(name)).name == SETTINGS:
        raise ConfigError(f"the record of the shard '{shard}' would be called {SETTINGS}, as the settings. Rename it.")
    return name


def _job(path: Path, output: Path, keys: ShardKeys, record: ShardRecord | None) -> ShardJob:
    digest = xxhash.xxh3_128()
    samples = 0
    skipped: list[Skipped] = []
    for found in read_shard(path, output.name):
        samples += 1
        members = "".join(f" {name}@{part.offset}+{part.nbytes}" for name, part in found.parts.items())
        digest.update(f"{found.key}{members} {found.problem}\n".encode(errors="surrogatepass"))
        try:
            for part in keys.parts(found):
                digest.update(b"" if part is None else part.ends())
        except ImageError as error:
            skipped.append(Skipped(found.key, str(error)))
    if record is not None and record.source != digest.hexdigest():
        raise ConfigError(f"{output} was made from another shard than {path}. Translate into another folder.")
    return ShardJob(
        name=output.name,
        source=path,
        output=output,
        digest=digest.hexdigest(),
        samples=samples,
        skipped=tuple(skipped),
        record=record,
    )


def check_corrupt(jobs: Sequence[ShardJob], skipped: Iterable[Skipped], max_corrupt: float) -> None:
    """Refuse shards with too many unusable samples."""
    known = {item.key: item for job in jobs for item in (job.record.skipped if job.record else job.skipped)}
    known |= {item.key: item for item in skipped}
    where = jobs[0].name if len(jobs) == 1 else f"{jobs[0].name} and {len(jobs) - 1} more"
    said = complaint(where, list(known.values()), sum(job.samples for job in jobs), max_corrupt)
    if said:
        raise DataError(said)


def record_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def finished_record(output: Path) -> ShardRecord | None:
    """Return the record of an output shard; None if one of the two is missing, or they do not belong together."""
    record = _read_record(record_path(output))
    try:
        return record if record is not None and record.result == contents_of(output) else None
    except OSError:
        return None


def contents_of(path: Path) -> dict[str, int | str]:
    """Return the size and end digest that identify a finished output shard.

    A change in its middle that keeps the size is not noticed: to read all of it at every start would take too long.
    """
    return {"nbytes": check_regular(path), "ends": ends_digest(path)}


def write_record(record: ShardRecord, output: Path) -> None:
    held = {
        "source": record.source,
        "pictures": record.images,
        "skipped": [asdict(item) for item in record.skipped],
        "result": record.result,
    }
    write_text(record_path(output), json.dumps(held, indent=2) + "\n")


def _read_record(path: Path) -> ShardRecord | None:
    try:
        held = parse_json(read_text(path))
        skipped = tuple(Skipped(item["key"], item["reason"]) for item in held["skipped"])
        return ShardRecord(source=held["source"], images=held["pictures"], skipped=skipped, result=held.get("result"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder whose shards were made with other settings."""
    path = folder / SETTINGS
    if not path.exists():
        if any(_read_record(record) for record in folder.glob("*.tar.json")):
            raise ConfigError(
                f"{folder} holds results, but no {SETTINGS} records how they were made. Use another folder."
            )
        return
    try:
        held = parse_json(read_text(path))
        differing = [
            f"{name} was {held.get(name)!r} and is now {value!r}"
            for name, value in settings.items()
            if held.get(name) != value
        ]
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"{path} cannot be read as the settings of a run. Translate into another folder.") from None
    if differing:
        raise ConfigError(
            f"{path} is from a run with other settings: {listing(differing)}. Translate into another folder, or use "
            "the same settings."
        )


def translate_shard(
    translate: Translate, job: ShardJob, task: ShardTask, *, take: Callable[[Skipped | None], None]
) -> ShardRecord:
    """Translate every image of a shard into members `KEY.output.png` of its output, which appears once all are done.

    The same shard and settings give the same bytes. `take` is called for every sample, with the sample if it is
    unusable; an exception from it drops the shard.
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
        settings = job.output.parent / SETTINGS
        if not settings.exists():
            write_text(settings, json.dumps(task.settings, indent=2) + "\n")
        record = ShardRecord(source=job.digest, images=images, skipped=tuple(skipped), result=contents_of(temporary))
        write_record(record, job.output)
    return record


def _results(translate: Translate, job: ShardJob, task: ShardTask) -> Iterator[tuple[str, bytes | Skipped]]:
    for found in read_shard(job.source, job.name):
        key = found.key.removeprefix(f"{job.name}/")
        try:
            source_part, mask_part = task.keys.parts(found)
            source = decode_image(source_part.read(), found.key)
            mask = decode_mask(mask_part.read(), "the mask", source.size) if mask_part else None
        except UnreadableError as error:
            raise DataError(f"{error}. It was there before: run the command again to go on.") from None
        except ImageError as error:
            yield key, Skipped(found.key, str(error))
        else:
            yield key, encode_image(translate(source, mask), f".{task.format}", mark=RESULT)


def predict(
    fabric: Fabric,
    jobs: Sequence[ShardJob],
    task: ShardTask,
    load: Callable[[torch.device], Translate],
    *,
    max_corrupt: float,
    progress: Progress,
) -> Predicted:
    """Translate the shards without an output, and wait for the other processes, which are started here.

    Each process takes every n-th one. SIGTERM and Ctrl-C drop the current shard. After an error in one process the
    others finish; then all raise it.
    """
    fabric.launch()
    # a group of its own: the others' limit of time is made for steps, not for shards
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE) if distributed.is_initialized() else None
    left = [job for job in jobs if job.record is None]
    seen = _gathered([job.name for job in left], group)
    if any(names != seen[0] for names in seen):
        raise ConfigError(
            f"process {fabric.global_rank}: the processes disagree on the finished shards. All machines must share the "
            "folder of the results."
        )
    mine = left[fabric.global_rank :: fabric.world_size]
    records: dict[str, ShardRecord] = {}
    known: list[Skipped] = []
    error: Exception | None = None
    with StopRequest() as stop:

        def take(skipped: Skipped | None) -> None:
            if stop.asked:
                raise Dropped
            progress.advance()
            if skipped is not None:
                known.append(skipped)
                check_corrupt(jobs, known, max_corrupt)

        stop.listen()
        try:
            if mine:
                progress.start(sum(job.samples for job in mine), "translating")
                translate = load(fabric.device)
                for job in mine:
                    records[job.name] = translate_shard(translate, job, task, take=take)
        except Dropped:
            pass
        except Exception as raised:  # whatever it is, the other processes must not wait for this one
            error = raised
        text = "" if error is None else f"{error}" or type(error).__name__
        everything = _gathered(Predicted(records=records, stopped_by=stop.asked, error=text), group)
    if error is not None:
        raise error
    for rank, one in enumerate(everything):
        if one.error:
            raise DataError(f"process {rank} has ended: {one.error}")
    records = {name: record for one in everything for name, record in one.records.items()}
    check_corrupt(jobs, [item for record in records.values() for item in record.skipped], max_corrupt)
    return Predicted(records=records, stopped_by=next((one.stopped_by for one in everything if one.stopped_by), ""))


def _gathered(value: Value, group: Any) -> list[Value]:
    """Return the values of all processes, in their order; each of them must call this."""
    if group is None:
        return [value]
    values: list[Any] = [None] * distributed.get_world_size(group)
    try:
        distributed.all_gather_object(values, value, group=group)
    except RuntimeError:  # torch's errors of a lost connection
        raise DataError("another process of this run has ended. Start it again: finished shards stay.") from None
    return values
