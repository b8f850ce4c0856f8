"""Result files: `THEME_MACHINE_DATE.json`, one for each theme of a run, and the newest of each theme."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbm_lora.atomic import write_text

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"


def write_result(
    folder: Path,
    theme: str,
    numbers: Mapping[str, Any],
    *,
    command: str,
    settings: Mapping[str, Any],
    pair: Mapping[str, Any],
    slug: str,
) -> Path:
    """Write one theme's numbers with what they belong to. A second run on one day replaces the first.

    Args:
        numbers: plain values; `machine`, `versions`, and `runs`, the measured processes by label.
        command: that measured, without paths.
        settings: that decide what was measured.
        pair: what the checkpoints are made of.
        slug: the machine as a part of the file's name.
    """
    now = datetime.datetime.now().astimezone()
    content = {
        "schema": SCHEMA,
        "theme": theme,
        "date": now.isoformat(timespec="seconds"),
        "command": command,
        "settings": dict(settings),
        "pair": dict(pair),
        **numbers,
    }
    path = folder / f"{theme}_{slug}_{now.date().isoformat()}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def newest(folder: Path) -> dict[str, dict[str, Any]]:
    """Theme -> its newest result.

    Raises:
        ValueError: a file of another schema.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{path.name} has schema {content.get('schema')}, this version reads {SCHEMA}.")
        theme = content["theme"]
        if theme not in found or _time(content) > _time(found[theme]):
            found[theme] = content
    return found


def _time(content: Mapping[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(content["date"])
