"""What says how the shards of a folder were made, so that a run goes on only with more of the same.

infer.json     the settings that every image in the folder depends on
NAME.tar       results
NAME.tar.json  of which shard they are, and which of its samples could not be used; written before NAME.tar appears
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lbm_lora.atomic import write_text
from lbm_lora.errors import ConfigError, listing
from lbm_lora.shards.samples import Skipped

SETTINGS = "infer.json"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of an output shard.

    Attributes:
        source: digest of the shard that it was made from.
        images: images in it.
        skipped: samples that could not be used.
    """

    source: str
    images: int
    skipped: tuple[Skipped, ...]


def write_record(record: ShardRecord, output: Path) -> None:
    """Write the record of an output shard."""
    held = {"source": record.source, "pictures": record.images, "skipped": [asdict(item) for item in record.skipped]}
    write_text(_path(output), json.dumps(held, indent=2) + "\n")


def read_record(output: Path) -> ShardRecord:
    """The record of an output shard that is there.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        held = json.loads(_path(output).read_text(encoding="utf-8"))
        skipped = tuple(Skipped(item["key"], item["reason"]) for item in held["skipped"])
        return ShardRecord(source=held["source"], images=held["pictures"], skipped=skipped)
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{output} is there, and no {_path(output).name} says how it was made. Translate into another folder, or "
            "remove it."
        ) from None


def check_settings(folder: Path, settings: Mapping[str, Any], *, started: bool) -> None:
    """Refuse a folder whose shards were made with other settings.

    Args:
        settings: as JSON has them.
        started: whether some of its shards are there already.

    Raises:
        ConfigError: names what differs, with both values; or the record cannot be read.
    """
    path = folder / SETTINGS
    if not path.exists():
        if started:
            raise ConfigError(
                f"{folder} holds results, and no {SETTINGS} says how they were made. Take another folder."
            )
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{name} is {held.get(name)!r} there and {value!r} now"
            for name, value in settings.items()
            if held.get(name) != value
        ]
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"{path} cannot be read as the settings of a run. Translate into another folder.") from None
    if differing:
        raise ConfigError(
            f"{path} is of a run with other settings: {listing(differing)}. Translate into another folder, or with "
            "the same settings."
        )


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a folder; those that are there are checked to be the same."""
    if not (folder / SETTINGS).exists():
        write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def _path(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")
