"""What every command does stays as it is: exit codes, messages, results, names and sizes of files.

Bits differ between processors, so numbers and sizes are compared within a tolerance; `tools/golden.py` compares two
trees on one machine bit for bit. After a wanted change, write `expected.json` anew and look at its difference:

    PYTHONPATH=tests:src python -m golden.test_golden
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden.scenes import write_inputs

import lbm_lora

EXPECTED = Path(__file__).with_name("expected.json")
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
_MOST = 12
"""Lists that are longer are known by their length: a ledger has a line for each tensor."""


def made(folder: Path) -> dict[str, Any]:
    """Run all scenes but the slow ones in a folder, in a process of their own; returns what is compared."""
    write_inputs(folder)
    file = folder / "record.json"
    command = [sys.executable, "-m", "golden.record", str(folder), str(file)]
    paths = [Path(__file__).parent.parent, Path(lbm_lora.__file__).parent.parent]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = json.loads(file.read_text())
    return {name: _summary(run, folder) for name, run in runs.items()}


def _summary(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    sizes = {name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in run.get("files", ())}
    kept = {key: run[key] for key in ("code", "messages", "gone") if run.get(key)}
    kept["files"] = {name: size for name, size in sizes.items() if "/logs/" not in name}
    if "json" in run:
        kept["json"] = _short(run["json"])
    elif run.get("text"):
        kept["text"] = [_NUMBER.sub("N", line) for line in run["text"].splitlines()][:_MOST]
    return kept


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()} if len(value) <= 4 * _MOST else f"{len(value)} entries"
    if isinstance(value, list):
        return [_short(one) for one in value] if len(value) <= _MOST else f"{len(value)} entries"
    return value


def _differences(place: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _differences(f"{place} | {key}", one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{place}[{index}]", *pair)
    elif isinstance(one, str) and isinstance(other, str):
        if _NUMBER.sub("N", one) != _NUMBER.sub("N", other):
            yield f"{place}: {one} -> {other}"
    elif isinstance(one, int | float) and isinstance(other, int | float):
        if one != pytest.approx(other, rel=0.1, abs=1e-3):
            yield f"{place}: {one} -> {other}"
    elif one != other:
        yield f"{place}: {one} -> {other}"


def test_every_command_does_what_it_did(tmp_path: Path) -> None:
    expected = json.loads(EXPECTED.read_text())
    found = json.loads(json.dumps(made(tmp_path)))
    assert "\n".join(_differences("", expected, found)) == ""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        EXPECTED.write_text(json.dumps(made(Path(temporary)), indent=0, sort_keys=True) + "\n")
