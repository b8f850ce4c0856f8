"""The process that is measured: `python -m benchmarks.child JOB SETTINGS ANSWER`.

A job is a function that does its imports and returns the work; only the work counts as such.
"""

import importlib
import json
import sys
import time
from pathlib import Path

JOBS = {
    "command": "jobs",
    "load": "jobs",
    "factors": "jobs",
    "agreement": "jobs",
    "infer": "forward",
    "live": "forward",
    "bare_pass": "references",
    "copy": "references",
    "svd": "references",
    "limits": "references",
}
"""Job -> the module of this package that has it."""


def main(job: str, settings: str, answer: str) -> None:
    work = getattr(importlib.import_module(f"benchmarks.{JOBS[job]}"), job)(**json.loads(settings))
    before, cpu, start = _io(), time.process_time(), time.perf_counter()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    io = {name: count - before[name] for name, count in _io().items()}
    found = {"work_s": seconds, "work_cpu_s": cpu_seconds, "io": io, "result": result}
    Path(answer).write_text(json.dumps(found))


def _io() -> dict[str, int]:
    """rchar, wchar, read_bytes and write_bytes of this process so far."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(": ") for line in lines)
    return {name: int(count) for name, count in pairs if name in ("rchar", "wchar", "read_bytes", "write_bytes")}


if __name__ == "__main__":
    main(*sys.argv[1:])
