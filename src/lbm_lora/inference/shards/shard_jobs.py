"""Plan which shards are read and written, from the headers of all shards, before anything is computed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize
from urllib.parse import urlparse

import xxhash

from lbm_lora.errors import ConfigError, DataError, ImageError, OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.inference.shards.shard_record import SETTINGS, ShardRecord, is_record, is_result, read_record, record_path
from lbm_lora.late_files import expect_only
from lbm_lora.progress import SILENT, Progress
from lbm_lora.regular_file import Version, version_of
from lbm_lora.shards.fetch import local_shards, path_of
from lbm_lora.shards.samples import Found, Part, Skipped, complaint
from lbm_lora.shards.tar import expand_shards, read_shard

_COMPRESSED = (".gz", ".bz2", ".xz")


@dataclass(frozen=True, kw_only=True)
class ShardKeys:
    """Members of a sample that are read; see `Found.pick`."""

    source: str = "source.jpg"
    mask: str | None = None

    def parts(self, found: Found) -> tuple[Part, Part | None]:
        """Return the source and the mask of a sample.

        Raises:
            ImageError: one of them is missing, or the sample is damaged.
        """
        if found.problem:
            raise ImageError(found.problem)
        return found.pick(self.source), found.pick(self.mask) if self.mask else None


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Shard to translate, with its output.

    Attributes:
        name: name of the output; it precedes the keys of its samples in messages.
        source: a local, uncompressed file.
        version: version of the source when it was planned; see `version_of`.
        digest: digest of the shard's members: names, positions, sizes, and both ends of their contents.
        samples: all samples, usable or not.
        skipped: unusable samples, as far as headers show them.
        record: record of the output, if it is finished.
    """

    name: str
    source: Path
    output: Path
    version: Version | None
    digest: str
    samples: int
    skipped: tuple[Skipped, ...]
    record: ShardRecord | None


def plan_shards(
    patterns: Sequence[str],
    folder: Path,
    keys: ShardKeys,
    *,
    cache_dir: Path | None,
    files: FilePlan,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[ShardJob]:
    """Return every shard in order, fetched if it is remote, with its output in `folder`.

    Args:
        patterns: paths and URLs; `{000..009}` is expanded.
        files: what else the command reads and writes.
        overwrite: whether existing shards of other programs may be replaced, and files at the paths of records.

    Raises:
        ConfigError: an output was made from another or an unknown shard; a copy needs `cache_dir`.
        DataError: a shard does not exist or is not a tar file.
        OutputError: two outputs have one name, or an output is an input, or not the one that its record describes; or
            a record is a file of somebody else.
    """
    if folder.is_file():
        raise OutputError(f"{folder} receives shards, so it must be a folder.")
    shards = expand_shards(patterns)
    names = [_output_name(shard) for shard in shards]
    # some disks do not tell cases apart, nor forms of a letter
    folded = [normalize("NFC", name).casefold() for name in names]
    twice = next((name for name, count in Counter(folded).items() if count > 1), None)
    if twice:
        both = " and ".join(shard for shard, name in zip(shards, folded, strict=True) if name == twice)
        raise OutputError(f"{both} would all be written to {folder / twice}. Translate them into separate folders.")
    paths = local_shards(shards, cache_dir=cache_dir, allow_pipe=False, progress=progress)
    files.reads(*paths, *map(path_of, shards))  # of a compressed one, the unpacked copy and the given file
    for name in names:
        ours = is_result if overwrite else lambda _: True  # its record tells; see `_finished`
        files.writes(folder / name, ours=ours, may_stay=True)
        files.writes(record_path(folder / name), "the record", ours=is_record, may_stay=True)
    files.check(overwrite=overwrite)
    for name in () if overwrite else names:
        expect_only(folder / name, is_result)
    progress.start(len(paths), "reading shards")
    jobs: list[ShardJob] = []
    for path, name in zip(paths, names, strict=True):
        jobs.append(_job(path, folder / name, keys, overwrite=overwrite))
        progress.advance()
    return jobs


def check_corrupt(jobs: Sequence[ShardJob], skipped: Iterable[Skipped], max_corrupt: float) -> None:
    """Refuse shards with too many unusable samples.

    Args:
        skipped: unusable samples found beyond the headers.

    Raises:
        DataError: more than `max_corrupt` of all samples.
    """
    known = {item.key: item for job in jobs for item in (job.record.skipped if job.record else job.skipped)}
    known |= {item.key: item for item in skipped}
    where = jobs[0].name if len(jobs) == 1 else f"{jobs[0].name} and {len(jobs) - 1} more"
    said = complaint(where, list(known.values()), sum(job.samples for job in jobs), max_corrupt)
    if said:
        raise DataError(said)


def _job(path: Path, output: Path, keys: ShardKeys, *, overwrite: bool) -> ShardJob:
    digest, version = xxhash.xxh3_128(), version_of(path)
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
    record = _finished(output, overwrite=overwrite)
    if record is not None:
        check_source(output, record, digest.hexdigest(), path)
    return ShardJob(
        name=output.name,
        source=path,
        output=output,
        version=version,
        digest=digest.hexdigest(),
        samples=samples,
        skipped=tuple(skipped),
        record=record,
    )


def check_source(output: Path, record: ShardRecord, digest: str, source: Path) -> None:
    """Refuse an output that was made from another shard.

    Raises:
        ConfigError: it was.
    """
    if record.source != digest:
        raise ConfigError(f"{output} was made from another shard than {source}. Translate into another folder.")


def _finished(output: Path, *, overwrite: bool) -> ShardRecord | None:
    """Return the record of an output; None if the output is missing, or is to be replaced."""
    if not output.exists() or (overwrite and not is_result(output)):
        return None
    return read_record(output)


def _output_name(shard: str) -> str:
    """Return the file name of a shard, without the extension of its compression.

    Raises:
        ConfigError: it has none, or its record would have the name of the folder's settings.
    """
    if shard.startswith("pipe:"):
        raise ConfigError(f"the shard '{shard}' has no file name to name its results after. Give a path or a URL.")
    name = Path(urlparse(shard).path if "://" in shard else shard).name
    suffix = next((suffix for suffix in _COMPRESSED if name.endswith(suffix)), "")
    name = name.removesuffix(suffix)
    if record_path(Path(name)).name == SETTINGS:
        raise ConfigError(f"the record of the shard '{shard}' would be called {SETTINGS}, as the settings. Rename it.")
    return name
