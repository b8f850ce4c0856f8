"""Run one job in a fresh process and measure it from outside.

Wall and CPU time are of the whole process, the import of torch included, and of the work after the imports. Memory
is the largest RssAnon + RssShmem that was seen, looked at every 10 ms: what a process takes of the machine, without
the pages of files that it has mapped. A peak shorter than that may be missed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_EVERY = 0.01  # seconds between two looks at the memory
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_BLOCK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process.

    Attributes:
        wall_s, cpu_s: of the whole process.
        work_s, work_cpu_s: after its imports.
        anon_bytes: the peak.
        io: rchar, wchar, read_bytes, write_bytes of the work (/proc/PID/io); empty where the system has none. Reads
            through a memory map are in none of them while the page cache is warm.
        result: what the job returned.
    """

    wall_s: float
    cpu_s: float
    work_s: float
    work_cpu_s: float
    anon_bytes: int
    io: dict[str, int] = field(default_factory=dict[str, int])
    result: dict[str, Any] = field(default_factory=dict[str, Any])


class JobFailedError(Exception):
    """A job ended with an error; its last lines."""


def run_job(job: str, settings: Mapping[str, object], *, cores: int = 2) -> Run:
    """Run `benchmarks.child` with a job of its table.

    Args:
        cores: that the process may use, where the system can tell it so; the number of threads follows.

    Raises:
        JobFailedError: it did not end well.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.child", job, json.dumps(dict(settings)), str(answer)]
        environment = {key: value for key, value in os.environ.items() if key not in _THREAD_SETTINGS}
        if not hasattr(os, "sched_setaffinity"):
            environment["OMP_NUM_THREADS"] = str(cores)
        with log.open("wb") as output:
            start = time.perf_counter()
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, cwd=ROOT, preexec_fn=lambda: _pin(cores)
            )
            peak, usage, status = _watch(process.pid)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not answer.exists():
            last = log.read_text(errors="replace").strip().splitlines()[-4:]
            raise JobFailedError(f"{job} ended with {process.returncode}: {' | '.join(last)}")
        found = json.loads(answer.read_text())
    return Run(wall_s=wall, cpu_s=usage.ru_utime + usage.ru_stime, anon_bytes=peak, **found)


def warm(paths: Iterable[Path]) -> int:
    """Read files once, so that they stand in the page cache; returns their size in bytes."""
    total = 0
    buffer = bytearray(_BLOCK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The medians of several runs, the largest memory, and every run's times and result."""
    middle = {
        name: round(statistics.median(getattr(run, name) for run in runs), 4)
        for name in ("wall_s", "cpu_s", "work_s", "work_cpu_s")
    }
    return {
        **middle,
        "anon_bytes": max(run.anon_bytes for run in runs),
        "io": runs[-1].io,
        "runs": [{k: v for k, v in asdict(run).items() if k != "io"} for run in runs],
    }


def _pin(cores: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _watch(pid: int) -> tuple[int, Any, int]:
    """Wait for a process: its peak of anonymous memory in bytes, its resource usage, its exit status."""
    peak = 0
    status_file = Path(f"/proc/{pid}/status")
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return peak, usage, status
        peak = max(peak, _anonymous(status_file))
        time.sleep(_EVERY)


def _anonymous(status_file: Path) -> int:
    try:
        lines = status_file.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
