"""Write result files `THEME_MACHINE_DATE.json`, one per theme of a run, and find the newest of each theme."""

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from lbm_lora.files import write_text

SCHEMA = 1
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / "work"

Result = Mapping[str, Any]
"""One result file: plain values."""
Results = Mapping[str, Result]
"""Map from theme to its newest result, by name."""

_PLACES = ("work", "results", "to")


def write_result(folder: Path, theme: str, *, cores: int, device: str = "cpu", **content: Any) -> Path:
    """Write one theme's numbers with their context. A second run on the same day replaces the first.

    Args:
        content: plain values: `command` without paths, `settings`, `pair` (the checkpoints), and the numbers.
    """
    now = datetime.datetime.now().astimezone()
    head = {"schema": SCHEMA, "theme": theme, "date": now.isoformat(timespec="seconds")}
    origin = {"machine": machine.machine(cores, device), "versions": machine.versions()}
    path = folder / f"{theme}_{machine.slug(cores, device)}_{now.date().isoformat()}.json"
    write_text(path, json.dumps({**head, **origin, **content}, indent=1) + "\n")
    return path


def newest(folder: Path, *, command: str) -> dict[str, Result]:
    """Return theme -> newest result, by name.

    Raises:
        SystemExit: no result has been measured yet; the message names the command to measure one.
        ValueError: a file has another schema.
    """
    contents = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for name, content in contents.items():
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{name} has schema {content.get('schema')}, this version reads {SCHEMA}.")
    if not contents:
        raise SystemExit(f"error: there are no result files yet. Measure with: {command}")
    by_date = sorted(contents.values(), key=lambda content: datetime.datetime.fromisoformat(content["date"]))
    return dict(sorted({content["theme"]: content for content in by_date}.items()))


def command_of(program: str, options: Any) -> str:
    """Return the command line of an options dataclass, without defaults and folders; input paths become their names."""
    words = [f"python -m {program}"]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in _PLACES and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            shown = " ".join(field.name.upper() if isinstance(one, Path) else str(one) for one in values)
            words.append(f"--{field.name} {shown}")
    return " ".join(words)
