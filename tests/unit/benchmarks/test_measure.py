"""Measuring a process from outside."""

import os
import time
from pathlib import Path

import pytest

from benchmarks.measure import JobFailedError, Run, proc_numbers, run_job, summary


def _run(seconds: float, anon_bytes: int = 0) -> Run:
    return Run(wall_s=seconds + 1, cpu_s=seconds, work_s=seconds, work_cpu_s=seconds, anon_bytes=anon_bytes)


def test_summary_has_medians_and_the_largest_memory() -> None:
    found = summary([_run(9, 5), _run(1, 7), _run(2, 3)])
    assert (found["work_s"], found["wall_s"], found["anon_bytes"]) == (2, 3, 7)
    assert [run["work_s"] for run in found["runs"]] == [9, 1, 2]


def test_a_job_is_measured_in_its_own_process() -> None:
    start = time.perf_counter()
    run = run_job(dict, {"answer": 42})
    assert run.result == {"answer": 42}
    assert time.perf_counter() - start > run.wall_s > run.work_s > 0
    assert run.anon_bytes > 2**20
    assert run.io.keys() >= {"rchar", "wchar"}


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match=r"remove ended with 1: .*no_such_file"):
        run_job(os.remove, {"path": str(tmp_path / "no_such_file")})  # pyright: ignore[reportArgumentType]


def test_numbers_of_a_file_in_proc(tmp_path: Path) -> None:
    path = tmp_path / "status"
    path.write_text("Name:\tpython\nRssAnon:\t   12 kB\nrchar: 345\n")
    assert proc_numbers(path) == {"RssAnon": 12, "rchar": 345}
    assert proc_numbers(tmp_path / "missing") == {}


def environment() -> dict[str, str | None]:
    """A job: what it finds in its environment."""
    return {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")}


def test_a_job_has_the_settings_of_the_command_line_that_work_only_before_torch_is_loaded() -> None:
    assert run_job(environment, {}).result == {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}
