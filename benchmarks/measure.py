"""Run one job in a fresh process and measure it from outside.

Wall and CPU time are measured for the complete process, including the import of torch, and for the work after the
imports. Memory is the largest RssAnon + RssShmem seen, read every 10 ms: the memory that a process takes, without
mapped file pages. A shorter peak may be missed.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lbm_lora.runtime import sleep_while_waiting, use_large_pages

JobFunction = Callable[..., dict[str, Any]]
"""The work: a public function of a module; arguments and result are plain values."""

_ROOT = Path(__file__).resolve().parent.parent
_INTERVAL = 0.01  # seconds between two memory readings
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_TIMES = ("wall_s", "cpu_s", "work_s", "work_cpu_s")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Measurements of one process."""

    wall_s: float  # complete process, like cpu_s
    cpu_s: float
    work_s: float  # after the imports, like work_cpu_s
    work_cpu_s: float
    anon_bytes: int  # the peak
    # rchar, wchar and others of the work (/proc/PID/io); none counts reads of a warm page cache through a memory map
    io: dict[str, int] = field(default_factory=dict[str, int])
    result: dict[str, Any] = field(default_factory=dict[str, Any])  # what the work returned

    def __str__(self) -> str:
        return (
            f"{self.work_s:.2f} s after imports, {self.wall_s:.2f} s in all, CPU {self.cpu_s:.2f} s, "
            f"{self.anon_bytes / 1e9:.2f} GB anonymous"
        )


class JobFailedError(Exception):
    """A job ended with an error; the message has its last lines."""


def run_job(job: JobFunction, settings: Mapping[str, object], *, cores: int = 2, imports: Sequence[str] = ()) -> Run:
    """Run a job in a separate process.

    Args:
        settings: the job's arguments.
        imports: modules to import before the work starts, in addition to the job's own.
        cores: cores for the process, if the system supports pinning; it uses as many threads.

    Raises:
        JobFailedError: the job failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        words = [job.__module__, job.__name__, json.dumps(dict(settings)), str(answer), *imports]
        environment = {key: value for key, value in os.environ.items() if key not in _THREAD_SETTINGS}
        if not hasattr(os, "sched_setaffinity"):
            environment["OMP_NUM_THREADS"] = str(cores)
        with log.open("wb") as output:
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.measure", *words],
                stdout=output,
                stderr=output,
                env=environment,
                cwd=_ROOT,
                preexec_fn=lambda: _pin(cores),
            )
            peak, usage, status = _watch(process.pid)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not answer.exists():
            last = log.read_text(errors="replace").strip().splitlines()[-4:]
            raise JobFailedError(f"{job.__name__} ended with {process.returncode}: {' | '.join(last)}")
        found = json.loads(answer.read_text())
    return Run(wall_s=wall, cpu_s=usage.ru_utime + usage.ru_stime, anon_bytes=peak, **found)


def warm(paths: Iterable[Path]) -> None:
    """Read files once, so that they are in the page cache."""
    buffer = bytearray(1 << 24)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the medians of several runs, the largest memory, and every run's times and result."""
    return {
        **{name: round(statistics.median(getattr(run, name) for run in runs), 4) for name in _TIMES},
        "anon_bytes": max(run.anon_bytes for run in runs),
        "io": runs[-1].io,
        "runs": [{key: value for key, value in asdict(run).items() if key != "io"} for run in runs],
    }


def proc_numbers(path: Path) -> dict[str, int]:
    """Return the lines `name: number` of a file in /proc, in its units; empty if it cannot be read."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _pin(cores: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _watch(pid: int) -> tuple[int, Any, int]:
    """Wait for a process; return its peak anonymous memory in bytes, its resource usage, and its exit status."""
    peak = 0
    status_file = Path(f"/proc/{pid}/status")
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return peak, usage, status
        found = proc_numbers(status_file)
        peak = max(peak, 1024 * (found.get("RssAnon", 0) + found.get("RssShmem", 0)))
        time.sleep(_INTERVAL)


def _child(module: str, name: str, settings: str, answer: str, *imports: str) -> None:
    """Run the child side of `run_job`; torch gets the settings of the command line, which work only before it loads."""
    sleep_while_waiting()
    use_large_pages()
    work: JobFunction = getattr(importlib.import_module(module), name)
    for further in imports:
        importlib.import_module(further)
    own_io = Path("/proc/self/io")
    before, cpu, start = proc_numbers(own_io), time.process_time(), time.perf_counter()
    result = work(**json.loads(settings))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    io = {name: count - before[name] for name, count in proc_numbers(own_io).items() if not name.startswith("sys")}
    found = {"work_s": seconds, "work_cpu_s": cpu_seconds, "io": io, "result": result}
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    _child(*sys.argv[1:])
