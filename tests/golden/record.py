"""Run scenes in a folder and write down what each has done: exit code, what it printed, the files that it changed.

    python record.py FOLDER RECORD.json [--slow] [NAME ...]

The inputs are in `FOLDER/in`. All scenes run in this process, save those that are killed.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from golden.scenes import Scene, all_scenes

_SECONDS = re.compile(r"\b\d+(\.\d+)? ?(s|min|ms|GB/s|MB/s|it/s)\b|\d+:\d\d(:\d\d)?")
_CLOCKED = re.compile(r"events\.out\.|/logs/")
"""Files that hold times, written by the libraries that log."""


def record(scenes: Iterable[Scene], folder: Path) -> dict[str, Any]:
    """Run scenes in a folder; returns name of a run -> what it did."""
    runs: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        known = _files()
        for scene in scenes:
            for number, value in enumerate(scene.values, 1):
                words = shlex.split(scene.line.replace("{}", value))
                started = time.perf_counter()
                if scene.kill_at and number == 1:
                    run = {"code": _killed(words, Path(scene.kill_at))}  # its files are the next run's, too
                else:
                    run = _run(words)
                    now = _files()
                    run["files"] = {name: digest for name, digest in now.items() if known.get(name) != digest}
                    run["gone"] = sorted(set(known) - set(now))
                    known = now
                runs[f"{scene.name} {number}"] = run
                seconds = time.perf_counter() - started
                print(f"{seconds:6.1f} s  {run['code']}  {scene.name} {number}", file=sys.stderr, flush=True)
    finally:
        os.chdir(before)
    return runs


def _run(words: Sequence[str]) -> dict[str, Any]:
    from lbm_lora.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
    text = out.getvalue()
    lines = [line for line in err.getvalue().splitlines() if line.startswith(("error", "warning", "note"))]
    done: dict[str, Any] = {"code": code, "messages": [_SECONDS.sub("TIME", line) for line in lines]}
    if "--json" in words and text:
        done["json"] = _untimed(json.loads(text))
    else:
        done["text"] = _SECONDS.sub("TIME", text)
    return done


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(one) for key, one in value.items() if "seconds" not in key}
    return [_untimed(one) for one in value] if isinstance(value, list) else value


def _killed(words: Sequence[str], file: Path) -> int:
    """Run a command in a process of its own and kill it as soon as a file is there; returns its exit code."""
    code = f"import sys; from lbm_lora.cli.main import main; sys.exit(main({list(words)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not file.exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def _files() -> dict[str, str]:
    """Digest of every finished file in the current folder that is no input."""
    found = (path for path in sorted(Path().rglob("*")) if path.is_file() and path.parts[0] != "in")
    found = (path for path in found if path.suffix != ".part")
    return {str(path): _digest(path) for path in found}


def _digest(path: Path) -> str:
    content = b"" if _CLOCKED.search(str(path)) else path.read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def main(argv: Sequence[str]) -> None:
    """Run what the words ask for; see the module."""
    words = [word for word in argv if word != "--slow"]
    folder, file, names = Path(words[0]), Path(words[1]).absolute(), words[2:]
    scenes = [scene for scene in all_scenes() if ("--slow" in argv or not scene.slow)]
    scenes = [scene for scene in scenes if not names or scene.name in names]
    file.write_text(json.dumps(record(scenes, folder), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
