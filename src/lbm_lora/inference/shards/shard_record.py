"""Records of how the shards of a folder were made, so that a run resumes only with the same settings.

infer.json     the settings that every image in the folder depends on; written before the first NAME.tar appears
NAME.tar       results
NAME.tar.json  the source shard, its unusable samples, and what tells the results from any other file; written before
               NAME.tar appears

So a record without its NAME.tar, or beside another one, means nothing: those results have yet to be made.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lbm_lora.atomic import write_text
from lbm_lora.errors import ConfigError, Option, OutputError, listing
from lbm_lora.late_files import expect
from lbm_lora.plain_text import parse_json, read_text
from lbm_lora.regular_file import ENDS, check_regular, ends_digest
from lbm_lora.shards.samples import Skipped

SETTINGS = "infer.json"
"""Written once; a folder with another one is refused."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Facts that identify the contents of a shard.

    Attributes:
        nbytes: its size.
        ends: digest of its first and last `ENDS` bytes.
    """

    nbytes: int
    ends: str


def contents_of(path: Path) -> Contents:
    """Return the facts that reveal a truncated or replaced shard, or one with another run's results.

    Reading all of a large shard at every resume would take too long, so a change in its middle that keeps its size is
    not seen.

    Raises:
        OSError: it is not a regular file, or cannot be read.
    """
    return Contents(nbytes=check_regular(path), ends=ends_digest(path))


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Record of an output shard.

    Attributes:
        source: digest of the source shard.
        images: number of its images.
        skipped: samples that could not be used.
        result: the output shard; None in a record of an earlier version.
    """

    source: str
    images: int
    skipped: tuple[Skipped, ...]
    result: Contents | None


def write_record(record: ShardRecord, output: Path) -> None:
    """Write the record of an output shard."""
    held = {
        "source": record.source,
        "pictures": record.images,
        "skipped": [asdict(item) for item in record.skipped],
        "result": None if record.result is None else asdict(record.result),
    }
    write_text(record_path(output), json.dumps(held, indent=2) + "\n")


def read_record(output: Path) -> ShardRecord:
    """Read the record of an existing output shard.

    Raises:
        ConfigError: there is none, or it cannot be read.
        OutputError: the shard is not the recorded one.
    """
    try:
        record = _read(record_path(output))
        found = contents_of(output)
    except _UNREADABLE:
        raise ConfigError(
            f"{output} exists, but no {record_path(output).name} records how it was made. Translate into another "
            "folder, or remove it."
        ) from None
    if found != record.result:
        raise OutputError(
            _difference(output, found, record.result), " Move it, or use ", Option("overwrite"), " to replace it."
        )
    return record


def _difference(output: Path, found: Contents, recorded: Contents | None) -> str:
    name = record_path(output).name
    if recorded is None:
        return f"{output} exists, but {name} is of an earlier version and does not describe its result."
    why = f"it has {found.nbytes} bytes, the result {recorded.nbytes}"
    if found.nbytes == recorded.nbytes:
        why = f"it has other contents (the first or last {ENDS >> 10} KiB)"
    return f"{output} is not the result that {name} records: {why}."


def is_result(output: Path) -> bool:
    """Return whether a file is the output shard that its record describes."""
    try:
        return _read(record_path(output)).result == contents_of(output)
    except _UNREADABLE:
        return False


def has_records(folder: Path) -> bool:
    """Return whether a folder holds records of output shards, of whichever command."""
    return any(is_record(path) for path in folder.glob("*.tar.json"))


def check_settings(folder: Path, settings: Mapping[str, Any], *, started: bool) -> None:
    """Refuse a folder whose shards were made with other settings.

    Args:
        settings: values that JSON can hold.
        started: whether some of its shards already exist.

    Raises:
        ConfigError: names what differs, with both values; or the record cannot be read.
    """
    path = folder / SETTINGS
    if not path.exists():
        if started:
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


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a folder, or check that the existing ones are the same.

    Raises:
        ConfigError: another run, with other settings, has written to the folder in the meantime.
    """
    check_settings(folder, settings, started=False)
    path, text = folder / SETTINGS, json.dumps(settings, indent=2) + "\n"
    if not path.exists():
        expect(path, lambda now: _holds(now, text))  # that of another process of this run
        write_text(path, text)


def _holds(path: Path, text: str) -> bool:
    try:
        return read_text(path) == text
    except (OSError, ValueError):
        return False


def _read(path: Path) -> ShardRecord:
    held = parse_json(read_text(path))
    skipped = tuple(Skipped(item["key"], item["reason"]) for item in held["skipped"])
    result = held.get("result")
    return ShardRecord(
        source=held["source"],
        images=held["pictures"],
        skipped=skipped,
        result=None if result is None else Contents(nbytes=result["nbytes"], ends=result["ends"]),
    )


def is_record(path: Path) -> bool:
    """Return whether a file is the record of an output shard."""
    try:
        _read(path)
    except _UNREADABLE:
        return False
    return True


def record_path(output: Path) -> Path:
    """Return the path of an output shard's record."""
    return output.with_name(f"{output.name}.json")
