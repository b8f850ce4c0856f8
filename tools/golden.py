"""Compare what every command does in two trees: exit codes, messages, results and the bytes of all files.

    python tools/golden.py OLD_TREE NEW_TREE [--slow] [NAME ...]

Both run the scenes of this checkout (`tests/golden/scenes.py`) on this machine, one after the other, each in a folder
of the same name. What OLD_TREE did is kept in `.golden`, by its commit. Exit code 1 if anything differs.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str]) -> int:
    """Compare two trees and print what differs."""
    words = [word for word in argv if word != "--slow"]
    options = ["--slow"] if "--slow" in argv else []
    old, new, names = Path(words[0]).resolve(), Path(words[1]).resolve(), words[2:]
    expected = _kept(old, options, names)
    found = _record(new, options, names)
    lines = list(_differences("", expected, found))
    print("\n".join(lines) or f"{len(found)} runs: no difference")
    return 1 if lines else 0


def _kept(tree: Path, options: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """What a tree did, from an earlier comparison if its commit and the scenes are the same."""
    if names:
        return _record(tree, options, names)
    commit = subprocess.run(
        ["git", "-C", tree, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    scenes = HERE / "tests/golden/scenes.py"
    file = HERE / f".golden/{commit[:12]}{''.join(options)}.json"
    if not file.exists() or file.stat().st_mtime < scenes.stat().st_mtime:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(_record(tree, options, names), indent=1))
    return json.loads(file.read_text())


def _record(tree: Path, options: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder, record = Path(temporary) / "run", Path(temporary) / "record.json"
        paths = [tree / "src", HERE / "tests"]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "COLUMNS": "80",
            "HF_HUB_OFFLINE": "1", "TMPDIR": temporary,
        }  # fmt: skip
        inputs = HERE / ".golden/inputs"
        if not inputs.exists():
            code = (
                f"from golden.scenes import write_inputs; from pathlib import Path; write_inputs(Path({str(inputs)!r}))"
            )
            subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        shutil.copytree(inputs, folder)
        program = HERE / "tests/golden/record.py"
        subprocess.run([sys.executable, program, folder, record, *options, *names], env=environment, check=True)
        return json.loads(record.read_text())


def _differences(place: str, one: Any, other: Any) -> Iterator[str]:
    """Yield a line for each value that is not the same in both."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _differences(f"{place} | {key}", one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{place}[{index}]", *pair)
    elif one != other:
        yield f"{place.removeprefix(' | ')}:\n  - {_short(one)}\n  + {_short(other)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 4000 else f"{text[:4000]} ..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
